"""An operator sends money back from his own wallet, and the daemon closes the payment by itself."""

from devchain.anvil import mine
from oncepaid.domain.chain import TxHash
from oncepaid.domain.refunding import refund_envelope
from tests.acceptance.conftest import World

FINAL_AFTER = 4
"""Blocks, of this node."""


async def make_final(world: World) -> None:
    """Mine until the node calls what there is final."""
    await mine(world.stack.rpc, FINAL_AFTER)


async def grow_old(world: World) -> None:
    """A range is asked a second time some seconds after it was stored: they have passed."""
    await world.sql.execute(
        "UPDATE chain_checkpoints SET stored_at = stored_at - interval '1 minute'"
    )


async def test_a_refund_with_its_envelope_closes_the_payment(world: World) -> None:
    """A refund of the wrong amount is told of, and leaves its payment where it is."""
    await world.first_start_done()
    payer = world.stack.payers[0]
    merchant = world.stack.merchant_wallet
    async with world.daemon() as daemon:
        paid = [await payer.transfer(world.stack.merchant, units) for units in (1_230_000, 77)]
        await daemon.wait_for("payment.unmatched", count=2)
        sent = await merchant.transfer(payer.address, 1_230_000, refund_envelope(TxHash(paid[0])))
        short = await merchant.transfer(payer.address, 76, refund_envelope(TxHash(paid[1])))
        await make_final(world)
        await world.stack.payers[1].transfer(world.stack.merchant, 5)
        await daemon.wait_for("payment.unmatched", count=3)
        assert (await world.payment(paid[0]))["status"] == "unmatched"
        assert await daemon.stop() == 0
    await grow_old(world)
    async with world.daemon() as daemon:
        told = await daemon.wait_for("payment.refunded")
        refused = await daemon.wait_for("refund.refused")
        metrics = await daemon.metrics()
        assert await daemon.stop() == 0
    assert (told["tx_hash"], told["usdc"]) == (sent, "1.230000")
    assert (refused["tx_hash"], refused["reason"]) == (short, "wrong_amount")
    assert metrics['oncepaid_payments_total{reason="",status="refunded"}'] == 1
    assert metrics['oncepaid_payments_usdc_total{status="refunded"}'] == 1.23
    assert [(await world.payment(one))["status"] for one in paid] == ["refunded", "unmatched"]
    (noted,) = await world.sql.fetch(
        "SELECT who, action, details ->> 'refund_tx_hash' FROM audit_log"
    )
    assert tuple(noted) == ("oncepaid", "payment.refund", sent)
