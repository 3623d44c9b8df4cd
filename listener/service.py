"""The listener: reads ranges of blocks and hands over what was paid to us, cursor and all."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import structlog

from listener.calldata import evidence_of_call, is_direct_call
from listener.decode import (
    Json,
    decode_authorization,
    decode_header,
    decode_transaction,
    decode_transfer,
    topic_of_address,
)
from listener.follower import (
    CursorOrphaned,
    FetchRange,
    Span,
    UpToDate,
    follows_cursor,
    is_end_sound,
    next_step,
    on_refused,
    on_served,
)
from listener.rpc import Call, ChainReader, HttpRpc, header_call
from oncepaid.domain.chain import (
    AUTHORIZATION_USED_TOPIC,
    TRANSFER_TOPIC,
    Address,
    AuthorizationLog,
    BlockRef,
    Header,
    Transaction,
    TransferLog,
    TxHash,
    time_of,
)
from oncepaid.domain.errors import ForkBelowCursor, InconsistentNode, RangeRefused
from oncepaid.domain.memo import memo_of_nonce
from oncepaid.domain.payments import Evidence, MemoSource, ObservedPayment, Signer
from oncepaid.metrics import Metrics

log = structlog.get_logger()

MAX_AUTHORIZERS: Final = 200
"""Addresses in one filter for `AuthorizationUsed`; providers allow some hundreds."""


HEARD_TRIES: Final = 5
"""How often a block that the subscription told of is looked for before the node's head is asked."""


class StoredRange(Protocol):
    @property
    def moved(self) -> bool: ...
    @property
    def stored(self) -> int: ...


class Cursor(Protocol):
    async def load(self) -> BlockRef | None: ...
    async def start_at(self, header: Header) -> BlockRef: ...


class Ledger(Protocol):
    async def store_range(
        self, cursor: BlockRef, end: Header, payments: Sequence[ObservedPayment]
    ) -> StoredRange: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What to look for. `recipients` None watches every recipient of the token."""

    token: Address
    recipients: frozenset[Address] | None
    start_block: int | Literal["latest"]
    max_range_blocks: int

    def log_filter(self) -> dict[str, Json]:
        """Return the filter for `eth_subscribe` and, with a range, for `eth_getLogs`."""
        topics: list[Json] = [TRANSFER_TOPIC]
        if self.recipients is not None:
            topics += [None, sorted(map(topic_of_address, self.recipients))]
        return {"address": self.token, "topics": topics}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """A fetched range, its end verified."""

    end: Header
    fetched: FetchRange
    payments: list[ObservedPayment]


class Listener:
    """Keeps the cursor at the head. `step` does one round; a driver calls it again and again."""

    def __init__(
        self, rpc: HttpRpc, cursor: Cursor, ledger: Ledger, *, watch: Watch, metrics: Metrics
    ) -> None:
        self._rpc = rpc
        self._reader = ChainReader(rpc)
        self._cursor_store = cursor
        self._ledger = ledger
        self._watch = watch
        self._metrics = metrics
        self._span = Span.first(watch.max_range_blocks)
        self._cursor: BlockRef | None = None
        self._heard: tuple[BlockRef, int] | None = None
        self._ahead: tuple[BlockRef, asyncio.Task[_Range]] | None = None

    def hear(self, block: BlockRef | None) -> None:
        """Note the block of a log that the subscription told of; saves asking for the head.

        The node that is asked may lag behind the one that told: it is asked again some times.
        """
        if block is None:
            self._heard = None
        elif self._heard is None or block.number > self._heard[0].number:
            self._heard = block, HEARD_TRIES

    async def prepare(self) -> None:
        """Load the cursor, or set it on a first start: what is paid from now on will be found.

        Raises `Retryable` errors of node and database.
        """
        await self._load_cursor()

    async def step(self) -> bool:
        """Read one range, or find that there is none; True when more may be waiting.

        Raises `Retryable` errors of node and database, and `ForkBelowCursor`.
        """
        try:
            return await self._step()
        except BaseException as exc:
            # Whatever went wrong, the database knows best how far it got.
            self._start_over()
            if isinstance(exc, InconsistentNode):
                self._rpc.distrust()
            raise

    async def _step(self) -> bool:
        cursor = await self._load_cursor()
        head = await self._head_above(cursor)
        step = next_step(cursor, head, self._span)
        match step:
            case UpToDate():
                return False
            case CursorOrphaned(found=found):
                raise ForkBelowCursor(f"the cursor stands on {cursor}, the chain has {found}")
        try:
            fetched = await self._next_range(cursor, step, head)
        except RangeRefused as exc:
            self._narrow(step, exc)
            return True
        self._span = on_served(self._span, fetched.fetched, len(fetched.payments))
        self._fetch_ahead(fetched.end.ref, head)
        stored = await self._ledger.store_range(cursor, fetched.end, fetched.payments)
        if not stored.moved:
            self._start_over()
            return True
        self._after_store(fetched, stored.stored)
        return fetched.end.number < head.number

    def _start_over(self) -> None:
        self._cursor = None
        if self._ahead is not None:
            self._ahead[1].cancel()
            self._ahead = None

    def _fetch_ahead(self, cursor: BlockRef, head: BlockRef) -> None:
        """In a backlog, fetch the next range while this one is stored: at most one ahead."""
        step = next_step(cursor, head, self._span)
        if isinstance(step, FetchRange):
            task = asyncio.create_task(self._fetch(cursor, step, head), name="fetch-ahead")
            task.add_done_callback(_retrieve)
            self._ahead = cursor, task

    async def _next_range(self, cursor: BlockRef, step: FetchRange, head: BlockRef) -> _Range:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == cursor:
            return await ahead[1]
        return await self._fetch(cursor, step, head)

    async def _load_cursor(self) -> BlockRef:
        if self._cursor is None:
            self._cursor = await self._cursor_store.load() or await self._first_cursor()
            self._metrics.cursor_block.set(self._cursor.number)
        return self._cursor

    async def _first_cursor(self) -> BlockRef:
        """A first start begins at `start_block`: the cursor stands on the block before it."""
        start = self._watch.start_block
        header = await self._reader.header("latest" if start == "latest" else max(0, start - 1))
        if header is None:
            raise InconsistentNode(f"the node has no block {start} yet")
        cursor = await self._cursor_store.start_at(header)
        log.info("listener.first_start", start_block=start, cursor=cursor.number)
        return cursor

    async def _head_above(self, cursor: BlockRef) -> BlockRef:
        if self._heard is not None:
            heard, tries_left = self._heard
            self._heard = (heard, tries_left - 1) if tries_left > 1 else None
            if heard.number > cursor.number:
                self._metrics.head_block.set(heard.number)
                return heard
            self._heard = None
        header = await self._reader.header("latest")
        if header is None:
            raise InconsistentNode("the node has no latest block")
        self._metrics.head_block.set(header.number)
        self._metrics.head_timestamp.set(header.timestamp_ms / 1000)
        return header.ref

    def _narrow(self, step: FetchRange, exc: RangeRefused) -> None:
        narrower = on_refused(self._span, step)
        if narrower is None:
            raise InconsistentNode(f"the node refuses the logs of a single block: {exc}") from exc
        log.info("listener.range_refused", blocks=step.blocks, next_blocks=narrower.blocks)
        self._span = narrower

    def _after_store(self, fetched: _Range, stored: int) -> None:
        end = fetched.end
        self._cursor = end.ref
        self._metrics.cursor_block.set(end.number)
        self._metrics.cursor_timestamp.set(end.timestamp_ms / 1000)
        if stored:
            log.info("payment.seen", count=stored, up_to_block=end.number)

    async def _fetch(self, cursor: BlockRef, step: FetchRange, head: BlockRef) -> _Range:
        """Fetch a range's logs and what its payments carry, between two looks at its end."""
        end = head if step.last == head.number else await self._end_of(step)
        logs = await self._logs(step)
        transfers = [t for t in (decode_transfer(entry, self._watch.token) for entry in logs) if t]
        transfers = [t for t in transfers if self._is_ours(t)]
        _check_range(transfers, step)
        after, transactions = await self._verify_and_read(cursor, end, transfers)
        payments = await self._observe(transfers, transactions, after)
        return _Range(end=after, fetched=step, payments=payments)

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
    ) -> tuple[Header, dict[TxHash, Transaction]]:
        """Look at both ends of the range again; in the same request read the transactions."""
        hashes = list(dict.fromkeys(transfer.tx_hash for transfer in transfers))
        # The parent hash of the very next block tells of the cursor; else the node is asked.
        below = [] if end.number == cursor.number + 1 else [header_call(cursor.number)]
        calls = [Call(method="eth_getTransactionByHash", params=(h,)) for h in hashes]
        answers = await self._rpc.call_all([header_call(end.number), *below, *calls])
        header = decode_header(answers[0])
        if header is None or not is_end_sound(end, header):
            if header is not None:
                self._heard = None  # not a node that lags: the block is gone
            raise InconsistentNode(f"block {end.number} changed while its range was read")
        at_cursor = decode_header(answers[1]) if below else None
        if below and at_cursor is None:
            raise InconsistentNode(f"the node has block {end.number} and not {cursor.number}")
        if not follows_cursor(cursor, header, at_cursor):
            raise ForkBelowCursor(f"block {header.number} is not built upon the cursor {cursor}")
        found = dict(zip(hashes, map(decode_transaction, answers[1 + len(below) :]), strict=True))
        return header, _checked_transactions(transfers, found, end)

    async def _observe(
        self,
        transfers: Sequence[TransferLog],
        transactions: dict[TxHash, Transaction],
        end: Header,
    ) -> list[ObservedPayment]:
        token = self._watch.token
        indirect = [t for t in transfers if not is_direct_call(transactions[t.tx_hash], token)]
        authorizations = await self._authorizations(indirect)
        times = await self._block_times(transfers, end)
        company = Counter((t.tx_hash, t.recipient) for t in transfers)
        return [
            ObservedPayment(
                log=t,
                block_time=time_of(times[t.block.number]),
                evidence=_authorization_evidence(t, authorizations)
                or evidence_of_call(transactions[t.tx_hash], t, token),
                transfers_in_tx=company[t.tx_hash, t.recipient],
            )
            for t in transfers
        ]

    async def _authorizations(
        self, transfers: Sequence[TransferLog]
    ) -> dict[tuple[TxHash, int], AuthorizationLog]:
        """Return the `AuthorizationUsed` logs of these payers, by transaction and log index.

        One call for a whole range: the payers are the filter. Direct transfers need none.
        """
        if not transfers:
            return {}
        payers = sorted({topic_of_address(transfer.sender) for transfer in transfers})
        first = min(transfer.block.number for transfer in transfers)
        last = max(transfer.block.number for transfer in transfers)
        base = {"address": self._watch.token, "fromBlock": hex(first), "toBlock": hex(last)}
        calls = [
            Call(
                method="eth_getLogs",
                params=(
                    {
                        **base,
                        "topics": [AUTHORIZATION_USED_TOPIC, payers[at : at + MAX_AUTHORIZERS]],
                    },
                ),
            )
            for at in range(0, len(payers), MAX_AUTHORIZERS)
        ]
        found = {}
        for logs in await self._rpc.call_all(calls):
            if not isinstance(logs, list):
                raise InconsistentNode("eth_getLogs did not return a list")
            for entry in logs:
                used = decode_authorization(entry, self._watch.token)
                if used is not None:
                    found[used.tx_hash, used.log_index] = used
        return found

    async def _block_times(self, transfers: Sequence[TransferLog], end: Header) -> dict[int, int]:
        """Return block times in Unix milliseconds; asks only where the logs do not carry them."""
        times = {t.block.number: t.timestamp_ms for t in transfers if t.timestamp_ms is not None}
        times[end.number] = end.timestamp_ms
        unknown = {t.block.number: t.block for t in transfers if t.block.number not in times}
        for header in await self._reader.headers(list(unknown)) if unknown else ():
            if header is None or header.ref != unknown.get(header.number):
                raise InconsistentNode("a paying block is not where its log says")
            times[header.number] = header.timestamp_ms
        return times


def _retrieve(task: asyncio.Task[_Range]) -> None:
    """Look at a failure that nobody may come to ask for, so that it is not reported as lost."""
    if not task.cancelled():
        task.exception()


def _checked_transactions(
    transfers: Sequence[TransferLog], found: dict[TxHash, Transaction | None], end: BlockRef
) -> dict[TxHash, Transaction]:
    """Return the transactions by hash, each in the block that all of its logs name."""
    for transfer in transfers:
        transaction, block = found[transfer.tx_hash], transfer.block
        if transaction is None or transaction.block_hash != block.hash:
            raise InconsistentNode(f"transaction {transfer.tx_hash} is not where its log says")
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


def _authorization_evidence(
    transfer: TransferLog, authorizations: dict[tuple[TxHash, int], AuthorizationLog]
) -> tuple[Evidence, ...]:
    """The token marks an authorization as used right before it moves the money: index - 1."""
    used = authorizations.get((transfer.tx_hash, transfer.log_index - 1))
    if used is None or used.authorizer != transfer.sender or used.block != transfer.block:
        return ()
    memo = memo_of_nonce(used.nonce)
    if memo is None:
        return ()
    return (Evidence(memo=memo, source=MemoSource.AUTHORIZATION, signer=Signer.PAYER),)
