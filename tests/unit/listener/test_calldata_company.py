"""Where several transfers or several calls are alike, none is taken for another."""

from listener.calldata import calldata_evidence
from oncepaid.domain.memo import envelope_of
from tests.unit.listener.calls import (
    BATCH_MODE,
    ENVELOPE,
    OTHER_ENVELOPE,
    PAY,
    PAY_7,
    PAY_8,
    ROUTER,
    WALLET,
    call,
    calls_of,
    evidence,
    execute,
    execute_batch,
    modular,
    receipt,
    shown,
    transaction,
    transfer,
    transfer_from,
    transfer_log,
)
from tests.unit.samples import OTHER_SHOP, PAYER, STRANGER, USDC, memo

BY_WALLET = (7, "calldata", "payer", WALLET, 1)


def test_each_transfer_of_a_batch_finds_its_own_memo() -> None:
    data = execute_batch((USDC, PAY_7), (USDC, PAY_8), (USDC, transfer(5) + ENVELOPE))
    logs = [
        transfer_log(3, sender=WALLET),
        transfer_log(4, sender=WALLET),
        transfer_log(9, sender=WALLET, units=5),
    ]
    found = evidence(data, logs, to=WALLET)
    payer = ("calldata", "payer", WALLET, 1)
    assert [shown(pieces) for pieces in found] == [[(7, *payer)], [(8, *payer)], [(7, *payer)]]


def test_a_tail_around_several_transfers_has_company() -> None:
    data = execute_batch((USDC, PAY), (USDC, transfer(5)), (USDC, transfer(6, OTHER_SHOP)))
    logs = [
        transfer_log(1, sender=WALLET),
        transfer_log(2, sender=WALLET, units=5),
        transfer_log(3, sender=WALLET, units=6, recipient=OTHER_SHOP),
    ]
    found = evidence(data + ENVELOPE, logs, sender=WALLET, to=WALLET)
    assert [shown(pieces) for pieces in found] == [
        [(7, "wrapper", "payer", WALLET, 3)],
        [(7, "wrapper", "payer", WALLET, 3)],
        [(7, "wrapper", "payer", WALLET, 3)],
    ]
    # Where everybody's transfers are observed, most of them are not to us.
    apart = calldata_evidence(
        transaction(data + ENVELOPE, sender=WALLET, to=WALLET),
        logs,
        receipt(),
        USDC,
        by_recipient=True,
    )
    assert [piece.company for pieces in apart.values() for piece in pieces] == [2, 2, 1]


def test_equally_strong_tails_stand_from_inside_out() -> None:
    batch = calls_of((ROUTER, execute(USDC, PAY)), (USDC, PAY)) + ENVELOPE
    data = call("multicall(bytes[])", [modular(BATCH_MODE, batch) + OTHER_ENVELOPE])
    data += envelope_of(memo(9))
    (pieces,) = evidence(data, [transfer_log(sender=WALLET)], sender=WALLET, to=WALLET)
    assert [piece.memo for piece in pieces] == [memo(7), memo(8), memo(9)]


def test_the_same_memo_from_several_places_is_kept_once_the_strongest() -> None:
    data = execute_batch((USDC, PAY_7), (USDC, transfer(5)))
    logs = [transfer_log(1, sender=WALLET), transfer_log(2, sender=WALLET, units=5)]
    found = evidence(data + ENVELOPE, logs, sender=WALLET, to=WALLET)
    assert shown(found[0]) == [BY_WALLET]
    found = evidence(data + ENVELOPE, logs, sender=STRANGER, to=WALLET)
    assert shown(found[0]) == [BY_WALLET]
    assert shown(found[1]) == [(7, "wrapper", "third_party", STRANGER, 2)]


def test_a_stronger_piece_replaces_a_weaker_one_with_the_same_memo() -> None:
    """A wallet spends the sender's allowance: the call is the wallet's, what is behind it his."""
    data = execute(USDC, transfer_from(PAYER) + ENVELOPE) + ENVELOPE
    (pieces,) = evidence(data, [transfer_log()], sender=PAYER, to=WALLET)
    assert shown(pieces) == [(7, "wrapper", "payer", PAYER, 1)]


def test_the_strongest_comes_first_and_sixteen_are_kept() -> None:
    noise = b"".join(envelope_of(memo(number)) for number in range(100, 130))
    data = execute(USDC, PAY_7) + noise
    (pieces,) = evidence(data, [transfer_log(sender=WALLET)], sender=STRANGER, to=WALLET)
    assert shown(pieces)[0] == BY_WALLET
    assert [piece.memo for piece in pieces[1:]] == [memo(number) for number in range(100, 115)]


def test_more_calls_than_transfers_cannot_be_told_apart() -> None:
    """One of them failed, and nobody can see which."""
    once = [transfer_log(sender=WALLET)]
    (pieces,) = evidence(execute_batch((USDC, PAY_7), (USDC, PAY_8)), once, to=WALLET)
    assert [piece[0::4] for piece in shown(pieces)] == [(7, 2), (8, 2)]
    (pieces,) = evidence(execute_batch((USDC, PAY_7), (USDC, PAY)), once, to=WALLET)
    assert [piece[0::4] for piece in shown(pieces)] == [(7, 2)]
    (pieces,) = evidence(execute_batch((USDC, PAY_7), (USDC, PAY_7)), once, to=WALLET)
    assert [piece[0::4] for piece in shown(pieces)] == [(7, 1)]


def test_fewer_calls_than_transfers_cannot_be_told_apart() -> None:
    """A call that is not seen made the other one."""
    twice = [transfer_log(1, sender=WALLET), transfer_log(2, sender=WALLET)]
    data = execute_batch((USDC, PAY_7), (ROUTER, b"pulls the same amount"))
    found = evidence(data, twice, to=WALLET)
    assert [shown(pieces) for pieces in found] == [[(7, "calldata", "payer", WALLET, 2)]] * 2


def test_many_calls_for_one_transfer_are_not_all_looked_at() -> None:
    data = execute_batch(*[(USDC, PAY_7)] * 40)
    (pieces,) = evidence(data, [transfer_log(sender=WALLET)], to=WALLET)
    assert [piece[0::4] for piece in shown(pieces)] == [(7, 40)]
