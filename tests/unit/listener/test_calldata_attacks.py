"""Attacks on the reading of calldata: no stranger's bytes are ever taken for the payer's."""

from typing import Any, Final

import pytest
from eth_abi.abi import encode

from oncepaid.domain.chain import Address
from oncepaid.domain.payments import Evidence, Signer
from tests.unit.listener.calls import (
    BUNDLER,
    ENTRY_POINT_V6,
    ENTRY_POINT_V7,
    ENVELOPE,
    MULTICALL3,
    OTHER_ENVELOPE,
    OTHER_WALLET,
    ROUTER,
    WALLET,
    aggregate3,
    authorized,
    authorized_by_bytes,
    before_execution,
    call,
    evidence,
    execute,
    execute_batch,
    handle_ops,
    operation_event,
    operation_v6,
    operation_v7,
    safe_transaction,
    shown,
    transfer,
    transfer_from,
    transfer_log,
)
from tests.unit.samples import PAYER, STRANGER, USDC

EVIL: Final = OTHER_ENVELOPE
RELAYER: Final = STRANGER


def is_bound(pieces: list[Evidence]) -> bool:
    """Say whether any of it could bind without a second thought."""
    return any(piece.signer is Signer.PAYER and piece.company == 1 for piece in pieces)


def in_operation(operation: Any, *logs: Any, entry_point: Address) -> list[list[Evidence]]:
    return evidence(
        handle_ops(operation),
        logs,
        before_execution(1, entry_point),
        operation_event(90, operation[0], entry_point=entry_point),
        sender=BUNDLER,
        to=entry_point,
    )


@pytest.mark.parametrize("data", [authorized(PAYER), authorized_by_bytes(PAYER)])
def test_relayer_swaps_the_tail(data: bytes) -> None:
    """The payer signed an authorization; what stands behind it is the relayer's."""
    (pieces,) = evidence(data + EVIL, [transfer_log()], sender=RELAYER)
    assert shown(pieces) == [(8, "calldata", "third_party", RELAYER, 1)]


def test_relayer_swaps_the_tail_of_a_safe() -> None:
    data = safe_transaction(USDC, transfer() + ENVELOPE) + EVIL
    (pieces,) = evidence(data, [transfer_log(sender=WALLET)], sender=RELAYER, to=WALLET)
    assert shown(pieces) == [
        (7, "calldata", "payer", WALLET, 1),
        (8, "wrapper", "third_party", RELAYER, 1),
    ]


def test_relayer_packs_authorizations_of_others_with_his_memo() -> None:
    data = aggregate3((USDC, authorized(PAYER) + EVIL), (USDC, authorized(WALLET) + EVIL)) + EVIL
    found = evidence(
        data, [transfer_log(1), transfer_log(2, sender=WALLET)], sender=RELAYER, to=MULTICALL3
    )
    assert not any(map(is_bound, found))


def test_spender_pays_with_the_money_of_another() -> None:
    wallets_call = execute(USDC, transfer_from(PAYER) + EVIL)
    (pieces,) = evidence(wallets_call, [transfer_log()], sender=RELAYER, to=WALLET)
    assert shown(pieces) == [(8, "calldata", "third_party", WALLET, 1)]
    (pieces,) = in_operation(
        operation_v7(WALLET, wallets_call + EVIL), transfer_log(9), entry_point=ENTRY_POINT_V7
    )
    assert shown(pieces) == [(8, "calldata", "third_party", WALLET, 1)]


PAYERS_CALL: Final = execute(USDC, transfer() + EVIL)


@pytest.mark.parametrize(
    ("data", "to"),
    [
        (execute(PAYER, PAYERS_CALL), ROUTER),
        (execute_batch((PAYER, PAYERS_CALL), (ROUTER, b"the real one")), ROUTER),
        (aggregate3((PAYER, PAYERS_CALL), (ROUTER, b"the real one")), MULTICALL3),
        (execute(ROUTER, call("multicall(bytes[])", [PAYERS_CALL])), ROUTER),
        (execute(ROUTER, execute(PAYER, PAYERS_CALL)), ROUTER),
        (execute(PAYER, safe_transaction(USDC, transfer() + EVIL)), ROUTER),
        (safe_transaction(PAYER, PAYERS_CALL, operation=1), ROUTER),
    ],
    ids=["execute", "batch", "multicall", "of itself", "deeper", "safe", "delegated"],
)
def test_a_call_of_the_payers_wallet_that_never_happened(data: bytes, to: Address) -> None:
    """The attacker's contract ignores its calldata, and hands the payer's own operation on."""
    (pieces,) = evidence(data, [transfer_log()], sender=RELAYER, to=to)
    assert not is_bound(pieces)
    assert not [piece for piece in pieces if piece.signer is Signer.PAYER]


def test_a_call_of_the_payers_wallet_in_the_operation_of_another() -> None:
    operation = operation_v7(WALLET, execute(PAYER, PAYERS_CALL) + EVIL)
    (pieces,) = in_operation(operation, transfer_log(9), entry_point=ENTRY_POINT_V7)
    assert shown(pieces) == [(8, "calldata", "third_party", WALLET, 1)]


def test_a_bundle_that_never_happened() -> None:
    """Its EntryPoint's events are those of another bundle, which stands where nobody sees it."""
    forged = handle_ops(operation_v7(WALLET, execute(USDC, transfer() + EVIL)))
    log = transfer_log(3, sender=WALLET)
    for emitter in (ENTRY_POINT_V7, ROUTER):
        events = [before_execution(1, emitter), operation_event(9, WALLET, entry_point=emitter)]
        for data in (forged, execute(ENTRY_POINT_V7, forged)):
            assert evidence(data, [log], *events, sender=RELAYER, to=ROUTER) == [[]]


def test_bundler_mixes_users_tails() -> None:
    """Whatever he puts behind the bundle, and in whichever order, each tail stays with its own."""
    mine = operation_v7(WALLET, execute(USDC, transfer()) + ENVELOPE)
    other = operation_v7(OTHER_WALLET, execute(USDC, transfer()) + EVIL)
    logs = {WALLET: (7, "wrapper", "payer", WALLET, 1)}
    logs[OTHER_WALLET] = (8, "wrapper", "payer", OTHER_WALLET, 1)
    for first, second in ((mine, other), (other, mine)):
        found = evidence(
            handle_ops(first, second) + EVIL,
            [transfer_log(3, sender=first[0]), transfer_log(6, sender=second[0])],
            *(before_execution(2), operation_event(4, first[0]), operation_event(8, second[0])),
            sender=BUNDLER,
            to=ENTRY_POINT_V7,
        )
        assert [shown(pieces)[0] for pieces in found] == [logs[first[0]], logs[second[0]]]
        assert not any(is_bound(pieces[1:]) for pieces in found)


def test_bundler_puts_the_operations_in_another_order_than_their_events() -> None:
    mine = operation_v7(WALLET, execute(USDC, transfer()) + ENVELOPE)
    other = operation_v7(OTHER_WALLET, execute(USDC, transfer_from(WALLET)) + EVIL)
    events = [before_execution(2), operation_event(4, OTHER_WALLET), operation_event(8, WALLET)]
    log = transfer_log(3, sender=WALLET)
    data = handle_ops(mine, other)
    assert evidence(data, [log], *events, sender=BUNDLER, to=ENTRY_POINT_V7) == [[]]


def test_memo_in_a_reverted_inner_call() -> None:
    """The first call failed, and its memo is not the one of the second."""
    data = aggregate3((USDC, transfer_from(PAYER) + EVIL), (USDC, transfer_from(PAYER) + ENVELOPE))
    (pieces,) = evidence(data, [transfer_log()], to=MULTICALL3)
    assert [piece[4] for piece in shown(pieces)] == [2, 2]
    assert not is_bound(pieces)
    bare = aggregate3((USDC, transfer_from(PAYER) + EVIL), (USDC, transfer_from(PAYER)))
    (pieces,) = evidence(bare, [transfer_log()], to=MULTICALL3)
    assert not is_bound(pieces)


def test_memo_in_a_reverted_inner_call_of_another_amount() -> None:
    data = aggregate3((USDC, transfer_from(PAYER, 5) + EVIL), (ROUTER, b"pays"))
    assert evidence(data, [transfer_log()], to=MULTICALL3) == [[]]


def test_memo_in_a_reverted_operation() -> None:
    failed = operation_v7(WALLET, execute(USDC, transfer() + EVIL) + EVIL)
    paid = operation_v7(WALLET, execute(USDC, transfer() + ENVELOPE))
    found = evidence(
        handle_ops(failed, paid),
        [transfer_log(6, sender=WALLET)],
        *(before_execution(2), operation_event(4, WALLET, succeeded=False)),
        operation_event(8, WALLET),
        sender=BUNDLER,
        to=ENTRY_POINT_V7,
    )
    assert [shown(pieces) for pieces in found] == [[(7, "calldata", "payer", WALLET, 1)]]


@pytest.mark.parametrize("place", ["init_code", "paymaster", "signature"])
@pytest.mark.parametrize(
    ("make", "entry_point"),
    [(operation_v6, ENTRY_POINT_V6), (operation_v7, ENTRY_POINT_V7)],
    ids=["v0.6", "v0.7"],
)
@pytest.mark.parametrize("to", ["entry point", "another"])
def test_memo_in_init_code_or_paymaster_data_or_a_signature(
    place: str, make: Any, entry_point: Address, to: str
) -> None:
    operation = make(WALLET, execute(USDC, transfer()), **{place: EVIL})
    log = transfer_log(9, sender=WALLET)
    assert in_operation(operation, log, entry_point=entry_point) == [[]]
    found = evidence(handle_ops(operation), [log], sender=BUNDLER, to=ROUTER)
    assert found == [[]], "nor is it scanned where the EntryPoint is not known"


def test_memo_in_a_signature_of_an_authorization_or_a_safe() -> None:
    data = authorized_by_bytes(PAYER, signature=EVIL + bytes(41))
    assert evidence(data, [transfer_log()], sender=RELAYER) == [[]]
    assert evidence(data, [transfer_log()], sender=PAYER) == [[]]
    data = safe_transaction(USDC, transfer(), signatures=EVIL)
    log = transfer_log(sender=WALLET)
    assert evidence(data, [log], sender=RELAYER, to=WALLET) == [[]]
    mode = (b"\1" + bytes(5) + bytes.fromhex("78210001")).ljust(32, b"\0")
    batch = encode(["(address,uint256,bytes)[]", "bytes"], [[(USDC, 0, transfer())], EVIL])
    data = call("execute(bytes32,bytes)", mode, batch)
    assert evidence(data, [log], sender=RELAYER, to=WALLET) == [[]]


def test_memo_in_a_nonce_or_an_amount() -> None:
    data = authorized(PAYER, nonce=int.from_bytes(EVIL.ljust(32, b"\0")))
    assert evidence(data, [transfer_log()], sender=RELAYER) == [[]]
    units = int.from_bytes(EVIL)
    data = execute(USDC, transfer(units))
    assert evidence(data, [transfer_log(sender=WALLET, units=units)], to=WALLET) == [[]]
