"""Reading one range of blocks: its transfers to us, what they carry, and that all of it agrees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from listener.decode import (
    Json,
    decode_header,
    decode_transaction,
    decode_transfer,
    topic_of_address,
)
from listener.follower import FetchRange, follows_cursor, is_end_sound
from listener.placing import transaction_of
from listener.receipts import EvidenceReader
from listener.references import ReferenceContract
from listener.rpc import Call, Caller, ChainReader, header_call
from oncepaid.domain.chain import (
    TRANSFER_TOPIC,
    Address,
    BlockRef,
    Header,
    Transaction,
    TransferLog,
    TxHash,
    time_of,
)
from oncepaid.domain.errors import CursorGone, InconsistentNode, NodeBehind
from oncepaid.domain.payments import ObservedPayment


class RangeMoved(InconsistentNode):
    """The range's end is another block than before: not a node that lags, the block is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What to look for. `recipients` None watches every recipient of the token.

    The events of `contracts` are believed where they say what a payment is for.
    """

    token: Address
    recipients: frozenset[Address] | None
    start_block: int | Literal["latest"]
    max_range_blocks: int
    contracts: tuple[ReferenceContract, ...] = ()

    def log_filter(self) -> dict[str, Json]:
        """Return the filter for `eth_subscribe` and, with a range, for `eth_getLogs`."""
        topics: list[Json] = [TRANSFER_TOPIC]
        if self.recipients is not None:
            topics += [None, sorted(map(topic_of_address, self.recipients))]
        return {"address": self.token, "topics": topics}


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A fetched range, its end verified."""

    end: Header
    fetched: FetchRange
    payments: list[ObservedPayment]


class RangeReader:
    """Asks a node for ranges. Holds nothing but whom to ask and what to look for."""

    def __init__(self, rpc: Caller, watch: Watch) -> None:
        self._rpc = rpc
        self._reader = ChainReader(rpc)
        self._carried = EvidenceReader(
            rpc, token=watch.token, recipients=watch.recipients, contracts=watch.contracts
        )
        self._watch = watch

    async def fetch(self, cursor: BlockRef, step: FetchRange, head: BlockRef) -> Range:
        """Fetch a range's logs and what its payments carry, between two looks at its end."""
        end = head if step.last == head.number else await self._end_of(step)
        transfers = await self._transfers(step)
        after, below, transactions = await self._verify_and_read(cursor, end, transfers)
        payments = await self._observe(transfers, transactions, (below, after), transfers)
        return Range(end=after, fetched=step, payments=payments)

    async def read(
        self, step: FetchRange, end: BlockRef | None
    ) -> tuple[Header, list[TransferLog]]:
        """Return the transfers of a range alone, between two looks at its end.

        `end` is the block that must stand there, None for whichever does. Raises `NodeBehind` where
        the node does not have it yet, `RangeMoved` where it has another.
        """
        header = await self._reader.header(step.last)
        if header is None:
            raise NodeBehind(f"the node has no block {step.last} yet")
        before = header.ref
        if end is not None and before != end:
            raise RangeMoved(f"block {step.last} is not the one that was read before")
        transfers = await self._transfers(step)
        after = await self._reader.header(step.last)
        if after is None or not is_end_sound(before, after):
            raise RangeMoved(f"block {step.last} was replaced while its range was read")
        return after, transfers

    async def observe(
        self, transfers: Sequence[TransferLog], end: Header, *, among: Sequence[TransferLog]
    ) -> list[ObservedPayment]:
        """Return transfers with what they carry; `end` is the verified end of their range.

        `among` are all transfers of that range.
        """
        if not transfers:
            return []
        hashes = list(dict.fromkeys(transfer.tx_hash for transfer in transfers))
        calls = [Call(method="eth_getTransactionByHash", params=(h,)) for h in hashes]
        answers = await self._rpc.call_all(calls)
        found = dict(zip(hashes, map(decode_transaction, answers), strict=True))
        # Which call made which transfer shows only beside all transfers of the same transaction.
        related = [transfer for transfer in among if transfer.tx_hash in found]
        return await self._observe(
            transfers, _checked_transactions(related, found, end.ref), (None, end), related
        )

    async def _transfers(self, step: FetchRange) -> list[TransferLog]:
        logs = await self._logs(step)
        decoded = (decode_transfer(entry, self._watch.token) for entry in logs)
        transfers = [transfer for transfer in decoded if transfer and self._is_ours(transfer)]
        _check_range(transfers, step)
        # A node may tell of a log twice.
        return list({(t.block.hash, t.log_index): t for t in transfers}.values())

    def _is_ours(self, transfer: TransferLog) -> bool:
        ours = self._watch.recipients
        return ours is None or transfer.recipient in ours

    async def _end_of(self, step: FetchRange) -> BlockRef:
        header = await self._reader.header(step.last)
        if header is None:
            raise InconsistentNode(f"the node has no block {step.last} below its head")
        return header.ref

    async def _logs(self, step: FetchRange) -> list[Json]:
        bounds = {"fromBlock": hex(step.first), "toBlock": hex(step.last)}
        logs = await self._rpc.call("eth_getLogs", {**self._watch.log_filter(), **bounds})
        if not isinstance(logs, list):
            raise InconsistentNode("eth_getLogs did not return a list")
        return logs

    async def _verify_and_read(
        self, cursor: BlockRef, end: BlockRef, transfers: Sequence[TransferLog]
    ) -> tuple[Header, Header | None, dict[TxHash, Transaction]]:
        """Look at both ends of the range again; in the same request read the transactions.

        Returns its end, the cursor's block where the node was asked for it, and the transactions.
        """
        hashes = list(dict.fromkeys(transfer.tx_hash for transfer in transfers))
        # The parent hash of the very next block tells of the cursor; else the node is asked.
        below = [] if end.number == cursor.number + 1 else [header_call(cursor.number)]
        calls = [Call(method="eth_getTransactionByHash", params=(h,)) for h in hashes]
        answers = await self._rpc.call_all([header_call(end.number), *below, *calls])
        header = decode_header(answers[0])
        if header is None or not is_end_sound(end, header):
            if header is not None:
                raise RangeMoved(f"block {end.number} was replaced while its range was read")
            raise NodeBehind(f"the node has no block {end.number} yet")
        at_cursor = decode_header(answers[1]) if below else None
        if below and at_cursor is None:
            raise InconsistentNode(f"the node has block {end.number} and not {cursor.number}")
        if not follows_cursor(cursor, header, at_cursor):
            raise CursorGone(f"block {header.number} is not built upon the cursor {cursor}")
        found = dict(zip(hashes, map(decode_transaction, answers[1 + len(below) :]), strict=True))
        return header, at_cursor, _checked_transactions(transfers, found, end)

    async def _observe(
        self,
        transfers: Sequence[TransferLog],
        transactions: dict[TxHash, Transaction],
        between: tuple[Header | None, Header],
        among: Sequence[TransferLog],
    ) -> list[ObservedPayment]:
        carried = await self._carried.read(among, transactions)
        times = await self._block_times(transfers, *between)
        return [
            ObservedPayment(
                log=t,
                block_time=time_of(times[t.block.number]),
                evidence=carried.evidence[t.tx_hash, t.log_index],
                transfers_in_tx=carried.transfers[t.tx_hash, t.recipient],
            )
            for t in transfers
        ]

    async def _block_times(
        self, transfers: Sequence[TransferLog], below: Header | None, end: Header
    ) -> dict[int, int]:
        """Return block times in Unix milliseconds.

        Asks for what the logs do not carry, or what they say and the range's ends contradict: some
        nodes put 0 there, and lateness is judged by it.
        """
        times = {} if below is None else _stamps_between(transfers, below, end)
        times[end.number] = end.timestamp_ms
        unknown = {t.block.number: t.block for t in transfers if t.block.number not in times}
        for header in await self._reader.headers(list(unknown)) if unknown else ():
            if header is None or header.ref != unknown.get(header.number):
                raise InconsistentNode("a paying block is not where its log says")
            times[header.number] = header.timestamp_ms
        return times


def _stamps_between(transfers: Sequence[TransferLog], below: Header, end: Header) -> dict[int, int]:
    """Return the block times that logs carry, where all logs of a block agree on a possible one.

    Compared by the second: a node may leave out the milliseconds here or there.
    """
    told: dict[int, set[int | None]] = {}
    for transfer in transfers:
        told.setdefault(transfer.block.number, set()).add(transfer.timestamp_ms)
    first_s, last_s = below.timestamp_ms // 1000, end.timestamp_ms // 1000
    return {
        number: stamp
        for number, stamps in told.items()
        for stamp in stamps
        if len(stamps) == 1 and stamp is not None and first_s <= stamp // 1000 <= last_s
    }


def _checked_transactions(
    transfers: Sequence[TransferLog], found: dict[TxHash, Transaction | None], end: BlockRef
) -> dict[TxHash, Transaction]:
    """Return the transactions by hash, each in the block that all of its logs name."""
    for transfer in transfers:
        transaction_of(transfer, found[transfer.tx_hash])
        block = transfer.block
        if block.number == end.number and block != end:
            raise InconsistentNode(
                f"a log of block {end.number} is of another block than its range"
            )
    return {tx_hash: transaction for tx_hash, transaction in found.items() if transaction}


def _check_range(transfers: Sequence[TransferLog], step: FetchRange) -> None:
    """A node that answers with logs from outside the range answered another question."""
    for transfer in transfers:
        if not step.first <= transfer.block.number <= step.last:
            raise InconsistentNode(f"eth_getLogs returned a log of block {transfer.block.number}")
