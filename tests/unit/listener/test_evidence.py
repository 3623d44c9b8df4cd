"""Evidence of all kinds put together: the strongest first, nothing twice, never too much."""

from dataclasses import replace
from typing import Any, Final

import pytest

from listener.evidence import authorizations_in, evidence_of
from listener.ranking import MAX_PIECES, strongest
from oncepaid.domain.chain import AUTHORIZATION_USED_TOPIC, Address
from oncepaid.domain.memo import Reference, envelope_of
from oncepaid.domain.payments import Evidence, MemoSource, Signer
from tests.unit.listener.contract_logs import CONTRACTS, PROXY, TX_HASH, Logs, transaction, word
from tests.unit.samples import PAYER, SHOP, STRANGER, USDC, memo

USED: Final = bytes.fromhex(AUTHORIZATION_USED_TOPIC[2:])
NONCE: Final = bytes(range(1, 33))
RELAYER: Final = STRANGER


def piece(number: int, **changed: Any) -> Evidence:
    fields: dict[str, Any] = {
        "memo": memo(number),
        "source": MemoSource.CALLDATA,
        "signer": Signer.PAYER,
    }
    return Evidence(**fields | changed)


def gathered(logs: Logs, calldata: bytes = b"", **changed: Any) -> list[tuple[Evidence, ...]]:
    """Return the evidence of the transfers to the shop, the receipt being there."""
    receipt = logs.receipt()
    ours = [log for log in logs.transfers if log.recipient == SHOP]
    found = evidence_of(
        transaction(calldata, **changed),
        ours,
        receipt,
        authorizations_in(receipt, TX_HASH, USDC),
        token=USDC,
        contracts=CONTRACTS,
    )
    return [found[log.log_index] for log in ours]


def authorize(logs: Logs, nonce: bytes, *, payer: Address = PAYER, token: Address = USDC) -> None:
    logs.add(token, (USED, word(payer), nonce))


def paid_with(nonce: bytes, *, payer: Address = PAYER) -> tuple[Evidence, ...]:
    logs = Logs()
    authorize(logs, nonce, payer=payer)
    logs.transfer(5, sender=payer)
    [found] = gathered(logs, sender=RELAYER)
    return found


def test_an_authorization_names_a_job_by_its_envelope() -> None:
    memo_piece = piece(1, source=MemoSource.AUTHORIZATION, by=PAYER)
    assert paid_with(envelope_of(memo(1)) + bytes(8)) == (memo_piece,)


def test_the_same_nonce_from_another_payer() -> None:
    """It is his own reference: nothing that was bound for the first payer is meant by it."""
    [first], [second] = paid_with(NONCE), paid_with(NONCE, payer=STRANGER)
    assert first.reference == Reference(issuer=PAYER, value=NONCE)
    assert second.reference == Reference(issuer=STRANGER, value=NONCE)
    assert (first.by, second.by) == (PAYER, STRANGER)
    assert first.signer is second.signer is Signer.PAYER


def _of_another(logs: Logs) -> None:
    authorize(logs, NONCE, payer=STRANGER)
    logs.transfer(5)


def _two_before(logs: Logs) -> None:
    authorize(logs, NONCE)
    logs.transfer(1, to=STRANGER)
    logs.transfer(5)


def _of_another_token(logs: Logs) -> None:
    authorize(logs, NONCE, token=STRANGER)
    logs.transfer(5)


def _with_a_dirty_payer(logs: Logs) -> None:
    logs.add(USDC, (USED, b"\x01" + word(PAYER)[1:], NONCE))
    logs.transfer(5)


def _of_one_topic_less(logs: Logs) -> None:
    logs.add(USDC, (USED, word(PAYER)))
    logs.transfer(5)


@pytest.mark.parametrize(
    "emit",
    [_of_another, _two_before, _of_another_token, _with_a_dirty_payer, _of_one_topic_less],
)
def test_authorizations_that_say_nothing(emit: Any) -> None:
    logs = Logs()
    emit(logs)
    assert gathered(logs) == [()]


def test_authorization_then_contract_then_calldata() -> None:
    logs = Logs()
    authorize(logs, NONCE)
    logs.transfer(5)
    logs.request(b"12345678", 5)
    # Of an unknown contract's calldata, signed by the payer.
    calldata = b"\x01\x02\x03\x04" + envelope_of(memo(2))
    [found] = gathered(logs, calldata, to=Address("0x" + "77" * 20))
    assert [one.source for one in found] == [
        MemoSource.AUTHORIZATION,
        MemoSource.CONTRACT,
        MemoSource.SCAN,
    ]


def test_without_a_receipt_the_calldata_speaks() -> None:
    """A direct call, as most payments are."""
    log = Logs().transfer(5)
    arguments = word(SHOP) + (5).to_bytes(32)
    call = transaction(bytes.fromhex("a9059cbb") + arguments + envelope_of(memo(1)), to=USDC)
    found = evidence_of(call, [log], None, {}, token=USDC, contracts=CONTRACTS)
    assert found == {log.log_index: (piece(1, by=PAYER),)}


def test_what_others_signed_never_comes_before_the_payers_word() -> None:
    payers, others = piece(1), piece(2, signer=Signer.THIRD_PARTY)
    shared = piece(3, company=2)
    assert strongest([others, shared, payers]) == (payers, shared, others)


def test_a_memo_is_kept_once_in_its_strongest_form() -> None:
    weak = piece(1, signer=Signer.THIRD_PARTY, source=MemoSource.CONTRACT)
    shared, strong = piece(1, company=2), piece(1)
    named = replace(weak, memo=None, reference=Reference(issuer=PROXY, value=b"\x01"))
    assert strongest([weak, named, shared, strong]) == (strong, named)
    # One and the same value of two issuers is two references.
    other = replace(named, reference=Reference(issuer=STRANGER, value=b"\x01"))
    assert strongest([named, other, named]) == (named, other)


def test_a_flood_of_memos_cannot_push_the_payers_out() -> None:
    flood = [piece(number, signer=Signer.THIRD_PARTY) for number in range(2, 500)]
    found = strongest([*flood, piece(1)])
    assert found[0] == piece(1)
    assert len(found) == MAX_PIECES


def test_zero_value_transfer_with_a_forged_from() -> None:
    """It stands in the receipt beside what was really paid, and is nobody's company or evidence."""
    logs = Logs()
    logs.transfer(0)
    logs.memo(envelope_of(memo(2)) + bytes(8))
    logs.transfer(5)
    logs.memo(envelope_of(memo(1)) + bytes(8))
    assert gathered(logs) == [(piece(1, source=MemoSource.CONTRACT, by=PAYER),)]
