"""Logs of a receipt as the contracts on the allow-list leave them, encoded by eth_abi."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from eth_abi.abi import encode
from eth_hash.auto import keccak

from listener.contract_events import (
    MEMO,
    PAYMENT_AUTHORIZED,
    PAYMENT_CAPTURED,
    PAYMENT_CAPTURED_1_1,
    PAYMENT_CHARGED,
    PAYMENT_CHARGED_1_1,
    PAYMENT_INFO_TYPEHASH,
    TRANSFER_WITH_REFERENCE,
    TRANSFER_WITH_REFERENCE_AND_FEE,
    TRANSFERRED,
)
from listener.references import ContractKind, ReferenceContract, contract_evidence
from oncepaid.domain.chain import (
    TRANSFER_TOPIC,
    ZERO_ADDRESS,
    Address,
    BlockHash,
    BlockRef,
    EventLog,
    Receipt,
    Transaction,
    TransferLog,
    TxHash,
)
from oncepaid.domain.memo import Memo, Reference
from oncepaid.domain.money import Units
from oncepaid.domain.payments import Evidence, MemoSource, Signer
from tests.unit.samples import PAYER, SHOP, USDC

CHAIN_ID: Final = 8453
PROXY: Final = Address("0x" + "e1" * 20)
COMMERCE: Final = Address("0x" + "e2" * 20)
ESCROW: Final = Address("0x" + "e3" * 20)
FEES: Final = Address("0x" + "fe" * 20)
STORE: Final = Address("0x" + "5f" * 20)
OPERATOR: Final = Address("0x" + "0e" * 20)
BLOCK: Final = BlockRef(number=7, hash=BlockHash("0x" + "0b" * 32))
TX_HASH: Final = TxHash("0x" + "0c" * 32)

INFO_TYPE: Final = (
    "(address,address,address,address,uint120,uint48,uint48,uint48,uint16,uint16,address,uint256)"
)


def word(address: str) -> bytes:
    return bytes.fromhex(address[2:]).rjust(32, b"\0")


@dataclass(kw_only=True)
class Logs:
    """A receipt in the making: each method adds one log at the next index and returns it."""

    first: int = 10
    events: list[EventLog] = field(default_factory=list)
    transfers: list[TransferLog] = field(default_factory=list)

    def add(self, emitter: Address, topics: Sequence[bytes], data: bytes = b"") -> EventLog:
        event = EventLog(
            log_index=self.first + len(self.events),
            address=emitter,
            topics=tuple(topics),
            data=data,
        )
        self.events.append(event)
        return event

    def transfer(
        self, units: int, *, sender: Address = PAYER, to: Address = SHOP, token: Address = USDC
    ) -> TransferLog:
        topics = (bytes.fromhex(TRANSFER_TOPIC[2:]), word(sender), word(to))
        event = self.add(token, topics, units.to_bytes(32))
        log = TransferLog(
            block=BLOCK,
            timestamp_ms=None,
            tx_hash=TX_HASH,
            log_index=event.log_index,
            sender=sender,
            recipient=to,
            units=Units(units),
        )
        if token == USDC and units:
            self.transfers.append(log)
        return log

    def memo(self, value: bytes, *, caller: Address = PAYER, token: Address = USDC) -> None:
        self.add(token, (MEMO, word(caller), value))

    def request(
        self,
        reference: bytes,
        units: int,
        *,
        fee: int = 0,
        fee_to: Address = FEES,
        to: Address = SHOP,
        token: Address = USDC,
        emitter: Address = PROXY,
    ) -> None:
        values = [token, to, units, fee, fee_to]
        data = encode(["address", "address", "uint256", "uint256", "address"], values)
        self.add(emitter, (TRANSFER_WITH_REFERENCE_AND_FEE, keccak(reference)), data)

    def plain_request(self, reference: bytes, units: int) -> None:
        data = encode(["address", "address", "uint256"], [USDC, SHOP, units])
        self.add(PROXY, (TRANSFER_WITH_REFERENCE, keccak(reference)), data)

    def transferred(
        self,
        intent: bytes,
        spent: int,
        *,
        operator: Address = OPERATOR,
        to: Address = SHOP,
        sender: Address = PAYER,
        currency: Address = USDC,
        emitter: Address = COMMERCE,
    ) -> None:
        kinds = ["bytes16", "address", "address", "uint256", "address"]
        data = encode(kinds, [intent, to, sender, spent, currency])
        self.add(emitter, (TRANSFERRED, word(operator)), data)

    def authorized(self, info: dict[str, Any], units: int) -> None:
        data = encode([INFO_TYPE, "uint256", "address"], [tuple(info.values()), units, STORE])
        self.add(ESCROW, (PAYMENT_AUTHORIZED, info_hash(info)), data)

    def charged(
        self,
        info: dict[str, Any],
        units: int,
        *,
        fee_bps: int = 0,
        fee: int | None = None,
        emitter: Address = ESCROW,
    ) -> None:
        """Version 1.0 with a fee in basis points, 1.1 with an absolute one."""
        topic, told = (PAYMENT_CHARGED, fee_bps) if fee is None else (PAYMENT_CHARGED_1_1, fee)
        kinds = [INFO_TYPE, "uint256", "address", "uint256", "address"]
        data = encode(kinds, [tuple(info.values()), units, STORE, told, FEES])
        self.add(emitter, (topic, info_hash(info)), data)

    def captured(
        self, info: dict[str, Any], units: int, *, fee_bps: int = 0, fee: int | None = None
    ) -> None:
        topic, told = (PAYMENT_CAPTURED, fee_bps) if fee is None else (PAYMENT_CAPTURED_1_1, fee)
        data = encode(["uint256", "uint256", "address"], [units, told, FEES])
        self.add(ESCROW, (topic, info_hash(info)), data)

    def receipt(self) -> Receipt:
        return Receipt(
            block=BLOCK,
            succeeded=True,
            transfers=tuple(self.transfers),
            events=tuple(self.events),
        )


def payment_info(salt: bytes = bytes(32), **changed: Any) -> dict[str, Any]:
    """Return a PaymentInfo, its fields in the order of the struct."""
    return {
        "operator": OPERATOR,
        "payer": PAYER,
        "receiver": SHOP,
        "token": USDC,
        "maxAmount": 10**9,
        "preApprovalExpiry": 1,
        "authorizationExpiry": 2,
        "refundExpiry": 3,
        "minFeeBps": 0,
        "maxFeeBps": 500,
        "feeReceiver": ZERO_ADDRESS,
        "salt": int.from_bytes(salt),
    } | changed


def info_hash(info: dict[str, Any]) -> bytes:
    """Return the hash as the escrow's `getHash` makes it."""
    terms = keccak(encode(["bytes32", INFO_TYPE], [PAYMENT_INFO_TYPEHASH, tuple(info.values())]))
    return keccak(encode(["uint256", "address", "bytes32"], [CHAIN_ID, ESCROW, terms]))


def transaction(calldata: bytes = b"", **changed: Any) -> Transaction:
    """Return a call of some contract by the payer."""
    fields: dict[str, Any] = {
        "hash": TX_HASH,
        "block_hash": BLOCK.hash,
        "sender": PAYER,
        "to": PROXY,
        "calldata": calldata,
    }
    return Transaction(**fields | changed)


CONTRACTS: Final = (
    ReferenceContract(kind=ContractKind.REQUEST_FEE_PROXY, address=PROXY, chain_id=CHAIN_ID),
    ReferenceContract(
        kind=ContractKind.COMMERCE_TRANSFERS,
        address=COMMERCE,
        chain_id=CHAIN_ID,
        operators=frozenset({OPERATOR}),
    ),
    ReferenceContract(kind=ContractKind.AUTH_CAPTURE_ESCROW, address=ESCROW, chain_id=CHAIN_ID),
)


def found(logs: Logs, *, calldata: bytes = b"") -> list[list[Evidence]]:
    """Return what is found for the transfers to the shop, in their order."""
    to_us = [log for log in logs.transfers if log.recipient == SHOP]
    pieces = contract_evidence(
        transaction(calldata), to_us, logs.receipt(), token=USDC, contracts=CONTRACTS
    )
    return [pieces.get(log.log_index, []) for log in to_us]


def said(named: Memo | Reference, **changed: Any) -> Evidence:
    """Return what a contract's event says, by default with the payer's signature."""
    is_reference = isinstance(named, Reference)
    fields: dict[str, Any] = {
        "memo": None if is_reference else named,
        "reference": named if is_reference else None,
        "source": MemoSource.CONTRACT,
        "signer": Signer.PAYER,
        "by": PAYER,
    }
    return Evidence(**fields | changed)
