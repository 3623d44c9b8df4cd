"""A memo is found behind the call that made the transfer, however deep, and behind those around it.

Each piece of evidence says who signed its bytes, and of how many transfers they may speak.
"""

import pytest

from listener.walk import MAX_CALLDATA_BYTES, MAX_CALLS, MAX_DEPTH
from oncepaid.domain.chain import Address
from tests.unit.listener.calls import (
    BASEAPP,
    BATCH_MODE,
    DELEGATE_MODE,
    ENVELOPE,
    MULTI_SEND,
    MULTICALL3,
    OTHER_ENVELOPE,
    OTHER_WALLET,
    PAY_7,
    PAY_8,
    ROUTER,
    SINGLE_MODE,
    UNITS,
    WALLET,
    aggregate3,
    authorized,
    authorized_by_bytes,
    call,
    calls_of,
    evidence,
    execute,
    execute_batch,
    modular,
    multi_send,
    redeem,
    safe_transaction,
    shown,
    target_bytes,
    transfer,
    transfer_from,
    transfer_log,
)
from tests.unit.samples import OTHER_SHOP, PAYER, SHOP, STRANGER, USDC

BY_WALLET = (7, "calldata", "payer", WALLET, 1)
BY_PAYER = (7, "calldata", "payer", PAYER, 1)

OF_A_WALLET = {
    "execute": execute(USDC, PAY_7),
    "executeBatch of tuples": execute_batch((ROUTER, b"approve"), (USDC, PAY_7)),
    "executeBatch of columns": call(
        "executeBatch(address[],uint256[],bytes[])", [ROUTER, USDC], [0, 0], [b"approve", PAY_7]
    ),
    "executeBatch without values": call("executeBatch(address[],bytes[])", [USDC], [PAY_7]),
    "7579 single": modular(SINGLE_MODE, target_bytes(USDC) + bytes(32) + PAY_7),
    "7579 batch": modular(BATCH_MODE, calls_of((ROUTER, b""), (USDC, PAY_7))),
    "7579 delegatecall": modular(
        DELEGATE_MODE, target_bytes(MULTI_SEND) + multi_send((USDC, PAY_7))
    ),
    "Safe": safe_transaction(USDC, PAY_7),
    "Safe, multiSend": safe_transaction(MULTI_SEND, multi_send((USDC, PAY_7)), operation=1),
    "Safe's 4337 module": call("executeUserOp(address,uint256,bytes,uint8)", USDC, 0, PAY_7, 0),
    "Safe's other module": call(
        "execTransactionFromModule(address,uint256,bytes,uint8)", USDC, 0, PAY_7, 0
    ),
    "of itself": execute(WALLET, execute(USDC, PAY_7)),
    "multicall": call("multicall(bytes[])", [execute(USDC, PAY_7)]),
    "multicall with a deadline": call("multicall(uint256,bytes[])", 9, [execute(USDC, PAY_7)]),
}


@pytest.mark.parametrize("data", OF_A_WALLET.values(), ids=OF_A_WALLET)
@pytest.mark.parametrize("sender", [STRANGER, WALLET], ids=["by another", "self-call of EIP-7702"])
def test_what_a_called_wallet_passes_on_is_signed_by_the_wallet(
    data: bytes, sender: Address
) -> None:
    (pieces,) = evidence(data, [transfer_log(sender=WALLET)], sender=sender, to=WALLET)
    assert shown(pieces) == [BY_WALLET]


@pytest.mark.parametrize("data", OF_A_WALLET.values(), ids=OF_A_WALLET)
def test_it_says_nothing_of_another_transfer(data: bytes) -> None:
    other = [
        transfer_log(1, sender=STRANGER),
        transfer_log(2, sender=WALLET, units=UNITS + 1),
        transfer_log(3, sender=WALLET, recipient=OTHER_SHOP),
    ]
    assert evidence(data, other, to=WALLET) == [[], [], []]


@pytest.mark.parametrize("data", OF_A_WALLET.values(), ids=OF_A_WALLET)
@pytest.mark.parametrize(
    ("sender", "signer"), [(STRANGER, "third_party"), (WALLET, "payer")], ids=["relayer", "self"]
)
def test_what_stands_behind_a_wallets_call_is_signed_by_the_sender(
    data: bytes, sender: Address, signer: str
) -> None:
    tail = OTHER_ENVELOPE + BASEAPP
    (pieces,) = evidence(data + tail, [transfer_log(sender=WALLET)], sender=sender, to=WALLET)
    assert shown(pieces) == [BY_WALLET, (8, "wrapper", signer, sender, 1)]


RELAYED = {
    "aggregate3": aggregate3((USDC, transfer_from(PAYER) + ENVELOPE)),
    "aggregate": call("aggregate((address,bytes)[])", [(USDC, transfer_from(PAYER) + ENVELOPE)]),
    "authorization": aggregate3((USDC, authorized(PAYER) + ENVELOPE)),
    "authorization by bytes": aggregate3((USDC, authorized_by_bytes(PAYER) + ENVELOPE)),
}


@pytest.mark.parametrize("data", RELAYED.values(), ids=RELAYED)
@pytest.mark.parametrize(("sender", "signer"), [(PAYER, "payer"), (STRANGER, "third_party")])
def test_a_multicall_vouches_for_nothing(data: bytes, sender: Address, signer: str) -> None:
    (pieces,) = evidence(data, [transfer_log()], sender=sender, to=MULTICALL3)
    assert shown(pieces) == [(7, "calldata", signer, sender, 1)]


def test_a_multicall_pays_from_its_own_money() -> None:
    data = aggregate3((USDC, PAY_7))
    assert evidence(data, [transfer_log()], to=MULTICALL3) == [[]]
    (pieces,) = evidence(data, [transfer_log(sender=MULTICALL3)], to=MULTICALL3)
    assert shown(pieces) == [(7, "calldata", "third_party", PAYER, 1)]


@pytest.mark.parametrize(
    ("mode", "execution"),
    [
        (SINGLE_MODE, target_bytes(USDC) + bytes(32) + PAY_7),
        (BATCH_MODE, calls_of((ROUTER, b""), (USDC, PAY_7))),
    ],
    ids=["single", "batch"],
)
@pytest.mark.parametrize(("sender", "signer"), [(PAYER, "payer"), (STRANGER, "third_party")])
def test_a_delegation_moves_the_money_of_whoever_gave_it(
    mode: bytes, execution: bytes, sender: Address, signer: str
) -> None:
    (pieces,) = evidence(redeem(mode, execution), [transfer_log()], sender=sender, to=ROUTER)
    assert shown(pieces) == [(7, "calldata", signer, sender, 1)]


def test_a_delegation_may_be_of_any_payer_of_that_amount() -> None:
    data = redeem(BATCH_MODE, calls_of((USDC, PAY_7)))
    logs = [transfer_log(1), transfer_log(2, sender=STRANGER)]
    both = evidence(data, logs, sender=STRANGER, to=ROUTER)
    assert [shown(pieces) for pieces in both] == [
        [(7, "calldata", "third_party", STRANGER, 2)],
        [(7, "calldata", "payer", STRANGER, 2)],
    ]


def test_a_delegation_beside_a_call_of_a_known_payer() -> None:
    """As many calls as transfers, and yet not in their order: nothing is guessed."""
    delegated = redeem(BATCH_MODE, calls_of((USDC, PAY_8)))
    data = aggregate3((USDC, transfer_from(PAYER) + ENVELOPE), (ROUTER, delegated))
    payers = [transfer_log(1), transfer_log(2, sender=WALLET)]
    in_order = evidence(data, payers, sender=STRANGER, to=MULTICALL3)
    assert [[piece[0::4] for piece in shown(pieces)] for pieces in in_order] == [[(7, 1)], [(8, 1)]]
    payers = [transfer_log(1, sender=WALLET), transfer_log(2)]
    swapped = evidence(data, payers, sender=STRANGER, to=MULTICALL3)
    assert [[piece[0::4] for piece in shown(pieces)] for pieces in swapped] == [
        [(8, 1)],
        [(7, 2), (8, 2)],
    ]


DIRECT = {
    "v, r, s": authorized(PAYER),
    "bytes": authorized_by_bytes(PAYER),
    "receive, v, r, s": authorized(PAYER, "receiveWithAuthorization"),
    "receive, bytes": authorized_by_bytes(PAYER, "receiveWithAuthorization"),
}


@pytest.mark.parametrize("data", DIRECT.values(), ids=DIRECT)
@pytest.mark.parametrize(("sender", "signer"), [(PAYER, "payer"), (STRANGER, "third_party")])
def test_behind_an_authorization_stands_what_its_relayer_wrote(
    data: bytes, sender: Address, signer: str
) -> None:
    (pieces,) = evidence(data + ENVELOPE + BASEAPP, [transfer_log()], sender=sender)
    assert shown(pieces) == [(7, "calldata", signer, sender, 1)]
    assert evidence(data, [transfer_log()], sender=sender) == [[]]


def test_what_a_router_pays_is_explained_by_the_tails_around_it() -> None:
    data = execute_batch((USDC, transfer(5) + OTHER_ENVELOPE), (ROUTER, b"swap and pay"))
    logs = [transfer_log(1, sender=ROUTER), transfer_log(2, sender=WALLET, units=5)]
    found = evidence(data + ENVELOPE, logs, sender=WALLET, to=WALLET)
    assert shown(found[0]) == [(7, "wrapper", "third_party", WALLET, 2)]
    assert shown(found[1])[0] == (8, "calldata", "payer", WALLET, 1)


def test_an_unknown_call_is_scanned() -> None:
    data = b"swap" + bytes(9) + ENVELOPE + bytes(40)
    logs = [transfer_log(1), transfer_log(2, sender=ROUTER), transfer_log(3, recipient=OTHER_SHOP)]
    found = evidence(data, logs, to=ROUTER)
    assert [shown(pieces) for pieces in found] == [
        [(7, "scan", "payer", PAYER, 3)],
        [(7, "scan", "third_party", PAYER, 3)],
        [(7, "scan", "payer", PAYER, 3)],
    ]


def test_an_unknown_call_inside_a_wallets_call_is_scanned() -> None:
    """A website that pays through a router can append no more than the wallet passes on."""
    data = execute_batch(
        (USDC, call("approve(address,uint256)", ROUTER, 5)), (ROUTER, b"swap" + PAY_7)
    )
    (pieces,) = evidence(data, [transfer_log(sender=WALLET)], sender=STRANGER, to=WALLET)
    assert shown(pieces) == [(7, "scan", "payer", WALLET, 1)]


def test_a_scan_that_finds_two_memos_finds_none() -> None:
    assert evidence(b"swap" + ENVELOPE + OTHER_ENVELOPE, [transfer_log()], to=ROUTER) == [[]]
    data = execute_batch((ROUTER, b"swap" + ENVELOPE), (ROUTER, b"swap" + OTHER_ENVELOPE))
    assert evidence(data, [transfer_log(sender=WALLET)], to=WALLET) == [[]]
    data = execute_batch((ROUTER, b"swap" + ENVELOPE), (ROUTER, b"swap" + ENVELOPE))
    (pieces,) = evidence(data, [transfer_log(sender=WALLET)], to=WALLET)
    assert shown(pieces) == [(7, "scan", "payer", WALLET, 1)]


NEVER_SCANNED = {
    "another function of the token": (call("approve(address,uint256)", SHOP, 5) + ENVELOPE, USDC),
    "the code of a new contract": (b"\x60\x80\x60\x40" + ENVELOPE, None),
    "another call of a wallet": (
        call("executeWithoutChainIdValidation(bytes[])", [b"add owner"]) + ENVELOPE,
        WALLET,
    ),
    "a call that does not decode": (execute(USDC, PAY_7)[:40] + ENVELOPE, WALLET),
    "code of the token in the wallet's name": (
        safe_transaction(USDC, PAY_7, operation=1),
        WALLET,
    ),
}


@pytest.mark.parametrize(("data", "to"), NEVER_SCANNED.values(), ids=NEVER_SCANNED)
def test_what_is_never_scanned(data: bytes, to: Address | None) -> None:
    logs = [transfer_log(), transfer_log(1, sender=WALLET)]
    assert evidence(data, logs, to=to) == [[], []]


def nested(depth: int) -> bytes:
    data = PAY_7
    for _ in range(depth):
        data = execute(WALLET if data is not PAY_7 else USDC, data)
    return data


def test_the_depth_is_bounded() -> None:
    log = transfer_log(sender=WALLET)
    (pieces,) = evidence(nested(MAX_DEPTH - 1), [log], to=WALLET)
    assert shown(pieces) == [BY_WALLET]
    assert evidence(nested(MAX_DEPTH), [log], to=WALLET) == [[]]


def test_the_number_of_calls_is_bounded() -> None:
    log = transfer_log(sender=WALLET)
    others = [(ROUTER, b"")] * (MAX_CALLS - 2)
    (pieces,) = evidence(execute_batch(*others, (USDC, PAY_7)), [log], to=WALLET)
    assert shown(pieces) == [BY_WALLET]
    assert evidence(execute_batch(*others, (ROUTER, b""), (USDC, PAY_7)), [log], to=WALLET) == [[]]


def test_the_size_is_bounded() -> None:
    log = transfer_log(sender=WALLET)
    data = execute(USDC, PAY_7)
    room = bytes(MAX_CALLDATA_BYTES - len(data))
    (pieces,) = evidence(data + room, [log], to=WALLET)
    assert shown(pieces) == [BY_WALLET]
    assert evidence(data + room + b"\0", [log], to=WALLET) == [[]]


def test_only_a_wallet_that_was_certainly_called_signs() -> None:
    """A wallet calls another one: that the other one was called at all is only written there."""
    data = execute(OTHER_WALLET, execute(USDC, PAY_7))
    (pieces,) = evidence(data, [transfer_log(sender=OTHER_WALLET)], sender=STRANGER, to=WALLET)
    assert shown(pieces) == [(7, "calldata", "third_party", WALLET, 1)]
