"""Memos in a transaction's calldata. Pure and bounded; never raises, whatever the bytes are.

A transfer is explained by the call that made it, if that can be found; what stands behind this call
and behind the calls around it speaks of the transfer, each signed by whoever signed those bytes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from listener.abi import Steps
from listener.operations import log_ranges, operation_at, read_bundle
from listener.tails import Tail, TailSearch, memos_behind
from listener.walk import Leaf, Walk, walk
from oncepaid.domain.chain import Address, Receipt, Transaction, TransferLog
from oncepaid.domain.memo import Memo
from oncepaid.domain.payments import Evidence, MemoSource, Signer

MAX_CALLDATA_BYTES: Final = 128 * 1024
"""Geth's limit of a transaction's size; longer calldata is not read."""
MAX_EVIDENCE: Final = 16
"""Kept for one transfer, the strongest of it; two different memos decide nothing already."""
MAX_CANDIDATES: Final = 8
"""Calls that are looked at for one transfer, where it cannot be told which of them made it."""

TRANSFER: Final = bytes.fromhex("a9059cbb")
"""transfer(address to, uint256 value)"""
TRANSFER_FROM: Final = bytes.fromhex("23b872dd")
"""transferFrom(address from, address to, uint256 value)"""
_ARGUMENT_BYTES: Final = {TRANSFER: 64, TRANSFER_FROM: 96}
_SELECTOR_BYTES: Final = 4
_WORD: Final = 32


def is_direct_call(transaction: Transaction, token: Address) -> bool:
    """Say whether the transaction itself calls the token's `transfer` or `transferFrom`."""
    return transaction.to == token and transaction.calldata[:_SELECTOR_BYTES] in _ARGUMENT_BYTES


def calldata_evidence(
    transaction: Transaction,
    transfers: Sequence[TransferLog],
    receipt: Receipt | None,
    token: Address,
) -> dict[int, tuple[Evidence, ...]]:
    """Return what the calldata says of each transfer, by log index, the strongest first.

    `transfers` are all transfers to us in this transaction. Only the calldata of user operations
    needs the receipt: without it, or with one that does not fit, they are taken to say nothing.
    """
    if transaction.to is None or len(transaction.calldata) > MAX_CALLDATA_BYTES:
        return {log.log_index: () for log in transfers}
    if is_direct_call(transaction, token):
        return {log.log_index: _of_direct_call(transaction, log) for log in transfers}
    steps = Steps()
    bundle = read_bundle(transaction, steps)
    ranges = () if bundle is None else log_ranges(bundle, transaction.to, receipt) or ()
    operations = {log.log_index: operation_at(ranges, log.log_index) for log in transfers}
    moving = {at for at in operations.values() if at is not None and ranges[at].succeeded}
    found = walk(transaction, token, bundle, moving, steps)
    return _Explaining(transfers, operations, found).all()


def _of_direct_call(transaction: Transaction, log: TransferLog) -> tuple[Evidence, ...]:
    """Return the memos behind the arguments of the direct token call that made `log`.

    Solidity ignores bytes behind the arguments, so wallets can append them. They are signed by
    the transaction's sender: the payer, or with `transferFrom` possibly a spender.
    """
    calldata = transaction.calldata
    selector = calldata[:_SELECTOR_BYTES]
    arguments_end = _SELECTOR_BYTES + _ARGUMENT_BYTES[selector]
    if not _made(calldata[_SELECTOR_BYTES:arguments_end], selector, transaction, log):
        return ()
    by = transaction.sender
    signer = _signer(by, log)
    return tuple(
        Evidence(memo=memo, source=MemoSource.CALLDATA, signer=signer, by=by)
        for memo in memos_behind(calldata[arguments_end:])
    )


def _made(arguments: bytes, selector: bytes, transaction: Transaction, log: TransferLog) -> bool:
    """Say whether these arguments are those of the transfer that `log` tells of."""
    words = [arguments[at : at + _WORD] for at in range(0, len(arguments), _WORD)]
    if len(words) != _ARGUMENT_BYTES[selector] // _WORD or len(words[-1]) != _WORD:
        return False
    sender = transaction.sender if selector == TRANSFER else _address(words[0])
    return (
        sender == log.sender
        and _address(words[-2]) == log.recipient
        and int.from_bytes(words[-1]) == log.units
    )


def _address(word: bytes) -> str:
    return "0x" + word[-20:].hex()


def _signer(by: Address | None, log: TransferLog) -> Signer:
    return Signer.PAYER if by == log.sender else Signer.THIRD_PARTY


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """The calls that may have made a transfer.

    `company`: how many calls or transfers cannot be told apart. `is_complete`: one of these calls
    made it for certain; else a call that is not seen may have.
    """

    leaves: Sequence[Leaf] = ()
    company: int = 1
    is_complete: bool = True


class _Explaining:
    """What the calls of one transaction say of its transfers to us."""

    def __init__(
        self, transfers: Sequence[TransferLog], operations: dict[int, int | None], found: Walk
    ) -> None:
        self._transfers = transfers
        self._operations = operations
        self._found = found
        self._search = TailSearch()
        self._scanned: dict[int | None, list[Tail]] = {}
        self._in_all = Counter(log.recipient for log in transfers)
        self._in_operation = Counter(
            (operations[log.log_index], log.recipient) for log in transfers
        )

    def all(self) -> dict[int, tuple[Evidence, ...]]:
        made_by = _candidates(self._transfers, self._operations, self._found.leaves)
        explained = {}
        for log in self._transfers:
            candidates = made_by[log.log_index]
            pieces = self._of_leaves(log, candidates) if candidates.leaves else self._unseen(log)
            explained[log.log_index] = _strongest(pieces)
        return explained

    def _of_leaves(self, log: TransferLog, candidates: _Candidates) -> Iterator[Evidence]:
        looked_at = candidates.leaves[:MAX_CANDIDATES]
        said = [list(self._of_tails(log, leaf.tails)) for leaf in looked_at]
        certain: set[Memo | None] = set()
        if candidates.is_complete and len(looked_at) == len(candidates.leaves):
            # Whichever of the calls made it: all of them say this.
            certain = set.intersection(*({piece.memo for piece in pieces} for pieces in said))
        for piece in (piece for pieces in said for piece in pieces):
            company = 1 if piece.memo in certain else candidates.company
            yield replace(piece, company=max(piece.company, company))

    def _unseen(self, log: TransferLog) -> Iterator[Evidence]:
        """Explain a transfer whose call is not to be seen, as where a router pays us.

        The tails around all that may have made it speak of it. So does what was handed on to
        unknown code, if but one memo stands in it.
        """
        operation = self._operations[log.log_index]
        covering = self._found.covering
        yield from self._of_tails(log, covering.get(operation, covering.get(None, ())))
        if operation not in self._scanned:
            self._scanned[operation] = self._scan(operation)
        yield from self._of_tails(log, self._scanned[operation])

    def _scan(self, operation: int | None) -> list[Tail]:
        """Return the calls of unknown code that carry a memo; none of them if there are two."""
        opaque = (tail for tail in self._found.opaque if tail.operation == operation)
        telling = [tail for tail in opaque if self._search.memos(tail)]
        memos = {memo for tail in telling for memo in self._search.memos(tail)}
        return telling if len(memos) == 1 else []

    def _of_tails(self, log: TransferLog, tails: Iterable[Tail]) -> Iterator[Evidence]:
        for tail in tails:
            for memo in self._search.memos(tail):
                yield Evidence(
                    memo=memo,
                    source=tail.source,
                    signer=_signer(tail.by, log),
                    by=tail.by,
                    company=self._company(tail, log),
                )

    def _company(self, tail: Tail, log: TransferLog) -> int:
        if tail.source is MemoSource.CALLDATA:
            return 1
        if tail.operation is None:
            return self._in_all[log.recipient]
        return self._in_operation[tail.operation, log.recipient]


def _candidates(
    transfers: Sequence[TransferLog], operations: dict[int, int | None], leaves: Sequence[Leaf]
) -> dict[int, _Candidates]:
    """Return for each transfer the calls for its payer, recipient and amount in its operation.

    As many calls as transfers: the first made the first one, and so on. Else a call has failed, or
    one is not seen, and they cannot be told apart.
    """
    # Where a call's payer is not known, all transfers of its amount and recipient are its company.
    open_to_all = {_key(leaf)[1:] for leaf in leaves if leaf.payer is None}
    calls = defaultdict(list)
    for leaf in leaves:
        key = _key(leaf)
        calls[None if key[1:] in open_to_all else key[0], key[1:]].append(leaf)
    logs = defaultdict(list)
    for log in transfers:
        rest = (operations[log.log_index], log.recipient, log.units)
        logs[None if rest in open_to_all else log.sender, rest].append(log)
    found: dict[int, _Candidates] = {}
    for group, alike in logs.items():
        found |= _told_apart(alike, calls.get(group, []))
    return found


def _key(leaf: Leaf) -> tuple[Address | None, int | None, Address, int]:
    return leaf.payer, leaf.operation, leaf.recipient, leaf.units


def _told_apart(logs: Sequence[TransferLog], leaves: Sequence[Leaf]) -> dict[int, _Candidates]:
    if len(logs) == len(leaves) and all(map(_may_have_made, leaves, logs)):
        pairs = zip(logs, leaves, strict=True)
        return {log.log_index: _Candidates(leaves=(leaf,)) for log, leaf in pairs}
    company = max(len(logs), len(leaves))
    return {
        log.log_index: _Candidates(
            leaves=[leaf for leaf in leaves if _may_have_made(leaf, log)],
            company=company,
            is_complete=len(leaves) >= len(logs),
        )
        for log in logs
    }


def _may_have_made(leaf: Leaf, log: TransferLog) -> bool:
    return leaf.payer is None or leaf.payer == log.sender


def _strongest(pieces: Iterable[Evidence]) -> tuple[Evidence, ...]:
    """Return the strongest piece for each memo, the payer's before others'."""
    best: dict[Memo | None, Evidence] = {}
    for piece in pieces:
        known = best.get(piece.memo)
        if known is None or _weakness(piece) < _weakness(known):
            best[piece.memo] = piece
    return tuple(sorted(best.values(), key=_weakness)[:MAX_EVIDENCE])


def _weakness(piece: Evidence) -> tuple[bool, int]:
    return piece.signer is not Signer.PAYER, piece.company
