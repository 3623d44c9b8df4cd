"""Calls as wallets encode them, and the transactions, logs and events around them."""

from collections.abc import Sequence
from typing import Any, Final

from eth_abi.abi import encode
from eth_abi.grammar import TupleType, parse
from eth_hash.auto import keccak

from listener.calldata import calldata_evidence
from listener.operations import BEFORE_EXECUTION, USER_OPERATION_EVENT
from oncepaid.domain.chain import (
    Address,
    BlockHash,
    BlockRef,
    EventLog,
    Receipt,
    Transaction,
    TransferLog,
    TxHash,
)
from oncepaid.domain.memo import envelope_of
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Evidence
from tests.unit.samples import PAYER, SHOP, USDC, memo

ENVELOPE: Final = envelope_of(memo(7))
OTHER_ENVELOPE: Final = envelope_of(memo(8))
UNITS: Final = Units(1_500_000)
MARKER: Final = bytes.fromhex("8021" * 8)
BASEAPP: Final = b"baseapp\x07\x00" + MARKER

WALLET: Final = Address("0x" + "e5" * 20)
OTHER_WALLET: Final = Address("0x" + "e6" * 20)
BUNDLER: Final = Address("0x" + "f7" * 20)
ROUTER: Final = Address("0x" + "08" * 20)
MULTICALL3: Final = Address("0xca11bde05977b3631167028862be2a173976ca11")
ENTRY_POINT_V6: Final = Address("0x5ff137d4b0fdcd49dca30c7cf57e578a026d2789")
ENTRY_POINT_V7: Final = Address("0x0000000071727de22e5e9d8baf0edac6f37da032")

BATCH_MODE: Final = b"\1".ljust(32, b"\0")
SINGLE_MODE: Final = bytes(32)
DELEGATE_MODE: Final = b"\xff".ljust(32, b"\0")
MULTI_SEND: Final = Address("0x" + "05" * 20)

BLOCK: Final = BlockRef(number=1, hash=BlockHash("0x" + "02" * 32))
TX: Final = TxHash("0x" + "01" * 32)

OPERATION_V6: Final = (
    "(address,uint256,bytes,bytes,uint256,uint256,uint256,uint256,uint256,bytes,bytes)"
)
OPERATION_V7: Final = "(address,uint256,bytes,bytes,bytes32,uint256,bytes32,bytes,bytes)"


def selector(signature: str) -> bytes:
    return keccak(signature.encode())[:4]


def types_of(signature: str) -> list[str]:
    arguments = parse(signature[signature.index("(") :])
    assert isinstance(arguments, TupleType)
    return [part.to_type_str() for part in arguments.components]


def call(signature: str, *arguments: Any) -> bytes:
    return selector(signature) + encode(types_of(signature), arguments)


def transfer(units: int = UNITS, to: str = SHOP) -> bytes:
    return call("transfer(address,uint256)", to, units)


def transfer_from(payer: str, units: int = UNITS, to: str = SHOP) -> bytes:
    return call("transferFrom(address,address,uint256)", payer, to, units)


_AUTHORIZED: Final = "(address,address,uint256,uint256,uint256,bytes32,"


def authorized(payer: str, name: str = "transferWithAuthorization", *, nonce: int = 1) -> bytes:
    """With v, r and s."""
    fixed = (payer, SHOP, UNITS, 0, 2**40, nonce.to_bytes(32))
    split = (27, bytes(32), bytes(32))
    return call(f"{name}{_AUTHORIZED}uint8,bytes32,bytes32)", *fixed, *split)


def authorized_by_bytes(
    payer: str, name: str = "transferWithAuthorization", *, signature: bytes = bytes(65)
) -> bytes:
    return call(f"{name}{_AUTHORIZED}bytes)", payer, SHOP, UNITS, 0, 2**40, bytes(32), signature)


def execute(target: str, data: bytes) -> bytes:
    return call("execute(address,uint256,bytes)", target, 0, data)


def execute_batch(*calls: tuple[str, bytes]) -> bytes:
    entries = [(target, 0, data) for target, data in calls]
    return call("executeBatch((address,uint256,bytes)[])", entries)


def aggregate3(*calls: tuple[str, bytes]) -> bytes:
    entries = [(target, True, data) for target, data in calls]
    return call("aggregate3((address,bool,bytes)[])", entries)


def safe_transaction(
    target: str, data: bytes, operation: int = 0, signatures: bytes = bytes(65)
) -> bytes:
    return call(
        "execTransaction(address,uint256,bytes,uint8,uint256,uint256,uint256,address,address,bytes)",
        *(target, 0, data, operation, 0, 0, 0, "0x" + "0" * 40, "0x" + "0" * 40, signatures),
    )


def packed(*calls: tuple[str, bytes], operation: int = 0) -> bytes:
    """As MultiSend reads them."""
    parts = [
        bytes([operation]) + bytes.fromhex(target[2:]) + bytes(32) + len(data).to_bytes(32) + data
        for target, data in calls
    ]
    return b"".join(parts)


def target_bytes(address: str) -> bytes:
    return bytes.fromhex(address[2:])


def modular(mode: bytes, execution: bytes) -> bytes:
    return call("execute(bytes32,bytes)", mode, execution)


def calls_of(*calls: tuple[str, bytes]) -> bytes:
    return encode(["(address,uint256,bytes)[]"], [[(to, 0, data) for to, data in calls]])


def redeem(mode: bytes, execution: bytes) -> bytes:
    signature = "redeemDelegations(bytes[],bytes32[],bytes[])"
    return call(signature, [OTHER_ENVELOPE], [mode], [execution])


def multi_send(*calls: tuple[str, bytes]) -> bytes:
    return call("multiSend(bytes)", packed(*calls))


PAY: Final = transfer()
PAY_7: Final = PAY + ENVELOPE
PAY_8: Final = PAY + OTHER_ENVELOPE


def operation_v6(sender: str, calldata: bytes, **other: bytes) -> tuple[Any, ...]:
    code, paymaster = other.get("init_code", b""), other.get("paymaster", b"")
    gas = (0, 0, 0, 0, 0)
    return (sender, 0, code, calldata, *gas, paymaster, other.get("signature", bytes(65)))


def operation_v7(sender: str, calldata: bytes, **other: bytes) -> tuple[Any, ...]:
    code, paymaster = other.get("init_code", b""), other.get("paymaster", b"")
    gas = (bytes(32), 0, bytes(32))
    return (sender, 0, code, calldata, *gas, paymaster, other.get("signature", bytes(65)))


def handle_ops(*operations: tuple[Any, ...]) -> bytes:
    """Of the EntryPoint that these operations are written for."""
    kind = OPERATION_V6 if len(operations[0]) == 11 else OPERATION_V7
    return call(f"handleOps({kind}[],address)", list(operations), BUNDLER)


def transaction(
    calldata: bytes, *, sender: Address = PAYER, to: Address | None = USDC
) -> Transaction:
    return Transaction(hash=TX, block_hash=None, sender=sender, to=to, calldata=calldata)


def transfer_log(
    index: int = 0, *, sender: Address = PAYER, units: int = UNITS, recipient: Address = SHOP
) -> TransferLog:
    return TransferLog(
        block=BLOCK,
        timestamp_ms=None,
        tx_hash=TX,
        log_index=index,
        sender=sender,
        recipient=recipient,
        units=Units(units),
    )


def before_execution(index: int, entry_point: Address = ENTRY_POINT_V7) -> EventLog:
    return EventLog(log_index=index, address=entry_point, topics=(BEFORE_EXECUTION,), data=b"")


def operation_event(
    index: int,
    sender: Address,
    *,
    entry_point: Address = ENTRY_POINT_V7,
    succeeded: bool = True,
) -> EventLog:
    topics = (USER_OPERATION_EVENT, bytes(32), bytes.fromhex(sender[2:]).rjust(32, b"\0"))
    words = (0, int(succeeded), 100, 100)
    data = b"".join(number.to_bytes(32) for number in words)
    return EventLog(log_index=index, address=entry_point, topics=(*topics, bytes(32)), data=data)


def receipt(*events: EventLog) -> Receipt:
    return Receipt(block=BLOCK, succeeded=True, transfers=(), events=events)


def evidence(
    calldata: bytes,
    logs: Sequence[TransferLog],
    *events: EventLog,
    sender: Address = PAYER,
    to: Address | None = USDC,
) -> list[list[Evidence]]:
    """Return what the calldata says of each of these logs, in their order."""
    call_ = transaction(calldata, sender=sender, to=to)
    found = calldata_evidence(call_, logs, receipt(*events), USDC)
    assert list(found) == [log.log_index for log in logs]
    return [list(pieces) for pieces in found.values()]


def shown(pieces: Sequence[Evidence]) -> list[tuple[int, str, str, Address | None, int]]:
    """Return evidence in short: number of the memo, source, signer, by whom, company."""
    return [
        (int.from_bytes(piece.memo or b""), piece.source, piece.signer, piece.by, piece.company)
        for piece in pieces
    ]
