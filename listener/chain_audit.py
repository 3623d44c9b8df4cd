"""The chain's side of an audit: blocks and balances held against the rows. Writes nothing."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, Protocol

from listener.arbiter import Arbiter
from listener.comparison import compare
from listener.decode import Json, decode_header, decode_transfer, topic_of_address
from listener.follower import FetchRange, Spans
from listener.ledger import ChainState, Checkpoint
from listener.ranges import RangeReader, Watch
from listener.rpc import Call, Caller, ChainReader, Endpoint, HttpRpc, header_call
from oncepaid.domain.auditing import Altered, Balance, CursorFacts, RangeFacts
from oncepaid.domain.chain import TRANSFER_TOPIC, Address, BlockRef, TransferLog, TxHash
from oncepaid.domain.errors import InconsistentNode, NodeBehind, RangeRefused
from oncepaid.domain.payments import PaymentId, StoredLog

BALANCE_OF: Final = "0x70a08231"
"""The selector of `balanceOf(address)`."""
BLOCKS_AT_ONCE: Final = 1000
KEPT_BLOCKS: Final = 4
"""Both ends of what an audit looks at, and of the one before."""


class Ledger(Protocol):
    async def state(self) -> ChainState | None: ...
    async def checkpoints(self, *, below: int | None, limit: int) -> Sequence[Checkpoint]: ...
    async def live_logs(
        self, first: int, last: int, tx_hashes: Sequence[TxHash] = ()
    ) -> list[StoredLog]: ...


class Books(Protocol):
    async def credited_in(self, first: int, last: int) -> set[PaymentId]: ...
    async def above_cursor(self) -> list[StoredLog]: ...


class ChainAudit:
    """Reads facts for the rules of `oncepaid.domain.auditing`. Every method raises `Retryable`s."""

    def __init__(self, rpc: HttpRpc, ledger: Ledger, books: Books, watch: Watch) -> None:
        self._rpc = rpc
        self._ledger = ledger
        self._books = books
        self._watch = watch
        self._kept: dict[BlockRef, list[int | None]] = {}
        self._spans = Spans(watch.max_range_blocks, rpc.count)

    @property
    def addresses(self) -> list[Address] | None:
        """Our addresses; None where every recipient is observed."""
        ours = self._watch.recipients
        return None if ours is None else sorted(ours)

    async def next_range(self, first: int, last: int) -> RangeFacts:
        """Read as many of these blocks as an endpoint serves at once, from the first on."""
        while True:
            asked = self._rpc.other_in_service()
            step = self._spans.step(asked.index, first, last)
            try:
                facts = await self.range(step, asked)
            except RangeRefused as exc:
                if not self._spans.refused(asked.index, step):
                    raise InconsistentNode(f"a single block's logs are refused: {exc}") from exc
                continue
            self._spans.served(asked.index, step, facts.rows)
            return facts

    async def range(self, step: FetchRange, asked: Endpoint) -> RangeFacts:
        """Read one range. Raises `RangeRefused` where it is too much."""
        end, logs = await RangeReader(asked, self._watch).read(step, None)
        went = await self._went(step, asked)
        rows = await self._ledger.live_logs(step.first, step.last)
        credited = await self._books.credited_in(step.first, step.last)
        difference = compare(rows, logs)
        gone: set[PaymentId] = set()
        if difference.extra:
            second = self._rpc.pinned(self._rpc.current) if self._rpc.count > 1 else None
            verdict = await Arbiter(self._watch.token).judge(
                difference.extra, asked, second, anchor=end.ref
            )
            gone = set(verdict.gone)
        came = Counter[Address]()
        for log in logs:
            came[log.recipient] += log.units
        for row in difference.extra:
            came[row.recipient] += 0 if row.id in gone else row.units
        by_key = {(log.block.hash, log.log_index): log for log in logs}
        return RangeFacts(
            first=step.first,
            last=step.last,
            rows=len(rows),
            credited=len(credited),
            missing=difference.missing,
            gone=[row for row in difference.extra if row.id in gone],
            altered=[
                Altered(row=row, log=by_key[row.block.hash, row.log_index])
                for row in difference.altered
            ],
            off_chain=await self._off_chain([row for row in rows if row.id in credited], asked),
            came=came,
            went=went,
        )

    async def _off_chain(self, rows: Sequence[StoredLog], asked: Caller) -> list[StoredLog]:
        heights = sorted({row.block.number for row in rows})
        hashes = await _hashes(asked, heights)
        return [row for row in rows if hashes[row.block.number] != row.block.hash]

    async def _went(self, step: FetchRange, asked: Caller) -> Counter[Address]:
        """Return what left our addresses: every transfer, also from one to another of them."""
        went = Counter[Address]()
        if self._watch.recipients is None:
            return went
        ours = sorted(map(topic_of_address, self._watch.recipients))
        logs = await asked.call(
            "eth_getLogs",
            {
                "address": self._watch.token,
                "topics": [TRANSFER_TOPIC, ours],
                "fromBlock": hex(step.first),
                "toBlock": hex(step.last),
            },
        )
        for log in _transfers(logs, self._watch, step):
            went[log.sender] += log.units
        return went

    async def balances(
        self, first: int, last: int, ranges: Sequence[RangeFacts]
    ) -> list[Balance] | None:
        """Return how our addresses' balances moved over these blocks; None where all are ours."""
        ours = self.addresses
        if ours is None:
            return None
        before, after = await self._balances_at(first - 1), await self._balances_at(last)
        came, went = Counter[Address](), Counter[Address]()
        for facts in ranges:
            came.update(facts.came)
            went.update(facts.went)
        return [
            Balance(address=one, before=before[at], after=after[at], came=came[one], went=went[one])
            for at, one in enumerate(ours)
        ]

    async def _balances_at(self, block: int) -> list[int | None]:
        """Return our addresses' balances after a block; None where the node has no state of it.

        A node may have pruned by the next audit what it knows now: the last blocks' are kept.
        """
        # An error for a pruned block is no failure of the node.
        calls = [
            Call(
                method="eth_call",
                params=(
                    {"to": self._watch.token, "data": BALANCE_OF + topic_of_address(one)[2:]},
                    hex(block),
                ),
                optional=True,
            )
            for one in self.addresses or ()
        ]
        header, *answers = await self._rpc.other_in_service().call_all([header_call(block), *calls])
        found = decode_header(header)
        values = [_word(answer) for answer in answers]
        if found is None:
            return values
        values = [
            kept if value is None else value
            for value, kept in zip(
                values, self._kept.get(found.ref, [None] * len(values)), strict=True
            )
        ]
        self._kept[found.ref] = values
        while len(self._kept) > KEPT_BLOCKS:
            del self._kept[next(iter(self._kept))]
        return values

    async def cursor(self, state: ChainState, checkpoints: int) -> CursorFacts:
        """Hold the cursor and so many of the newest checkpoints against the chain."""
        asked = self._rpc.other_in_service()
        header = await ChainReader(asked).header(state.cursor.number)
        if header is None:
            raise NodeBehind(f"{asked.label} has no block {state.cursor.number} yet")
        strayed: list[BlockRef] = []
        below: int | None = None
        while checkpoints > 0:
            limit = min(checkpoints, BLOCKS_AT_ONCE)
            page = await self._ledger.checkpoints(below=below, limit=limit)
            blocks = [one.block for one in page]
            hashes = await _hashes(asked, [block.number for block in blocks])
            strayed += [block for block in blocks if hashes[block.number] != block.hash]
            if len(page) < limit:
                break
            below = blocks[-1].number
            checkpoints -= limit
        return CursorFacts(
            cursor=state.cursor,
            found=header.ref,
            checked=state.checked,
            finalized=state.finalized,
            above=await self._books.above_cursor(),
            strayed=strayed,
        )


async def _hashes(asked: Caller, heights: Sequence[int]) -> dict[int, str]:
    """Return the hashes at these heights. Raises `NodeBehind` where there is no block."""
    found: dict[int, str] = {}
    for at in range(0, len(heights), BLOCKS_AT_ONCE):
        some = await ChainReader(asked).hashes(heights[at : at + BLOCKS_AT_ONCE])
        for number, block_hash in some.items():
            if block_hash is None:
                raise NodeBehind(f"the node has no block {number} yet")
            found[number] = block_hash
    return found


def _transfers(logs: Json, watch: Watch, step: FetchRange) -> list[TransferLog]:
    if not isinstance(logs, list):
        raise InconsistentNode("eth_getLogs did not return a list")
    decoded = [decode_transfer(entry, watch.token) for entry in logs]
    ours = watch.recipients or frozenset()
    found = [log for log in decoded if log is not None and log.sender in ours]
    for log in found:
        if not step.first <= log.block.number <= step.last:
            raise InconsistentNode(f"eth_getLogs returned a log of block {log.block.number}")
    return list({(log.block.hash, log.log_index): log for log in found}.values())


def _word(answer: Json) -> int | None:
    """Return a `uint256`; None for no answer, and for `0x`, which is a contract not yet there."""
    if not isinstance(answer, str) or len(answer) != 66 or not answer.startswith("0x"):
        return None
    try:
        return int(answer, 16)
    except ValueError:
        return None
