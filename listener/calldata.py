"""Memos in a transaction's calldata. Pure and bounded; never raises, whatever the bytes are.

A transfer is explained by the call that made it, if that can be found; what stands behind this call
and behind the calls around it speaks of the transfer, each signed by whoever signed those bytes.

The word of others counts only where the payer's own would have been read. Who brings a transaction
to the chain could else hide what the payer signed, and put his own memo beside the payment.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from listener.abi import WORD_BYTES, Steps
from listener.operations import OperationEnds, log_ranges, operation_at, read_bundle
from listener.ranking import strongest
from listener.tails import Tail, TailSearch, memos_behind
from listener.token_calls import (
    AUTHORIZED,
    SELECTOR_BYTES,
    TRANSFER,
    TRANSFER_FROM,
    address_of,
)
from listener.walk import MAX_CALLDATA_BYTES, Leaf, Walk, walk
from oncepaid.domain.chain import Address, Receipt, Transaction, TransferLog
from oncepaid.domain.memo import Memo
from oncepaid.domain.payments import Evidence, MemoSource, Signer

MAX_CANDIDATES: Final = 8
"""Calls that are looked at for one transfer, where it cannot be told which of them made it."""
MAX_EXPLAINED: Final = 256
"""Transfers to us in one transaction; anyone can send us thousands of crumbs in one. Those behind
them get no evidence from its calldata, and an operator decides."""

_ARGUMENTS_END: Final = {TRANSFER: 4 + 64, TRANSFER_FROM: 4 + 96}


def is_direct_call(transaction: Transaction, token: Address) -> bool:
    """Say whether the transaction itself calls the token's `transfer` or `transferFrom`."""
    return transaction.to == token and transaction.calldata[:SELECTOR_BYTES] in _ARGUMENTS_END


def is_authorized_call(transaction: Transaction, token: Address) -> bool:
    """Say whether the transaction itself hands a payer's EIP-3009 authorization to the token."""
    return transaction.to == token and transaction.calldata[:SELECTOR_BYTES] in AUTHORIZED


def needs_receipt(transaction: Transaction, token: Address) -> bool:
    """Say whether what is carried may stand in events: not where the token itself is called."""
    return not is_direct_call(transaction, token) and not is_authorized_call(transaction, token)


def calldata_evidence(
    transaction: Transaction,
    transfers: Sequence[TransferLog],
    receipt: Receipt | None,
    token: Address,
    *,
    by_recipient: bool = False,
) -> dict[int, tuple[Evidence, ...]]:
    """Return what the calldata says of each transfer, by log index, the strongest first.

    `transfers` are all transfers to us in this transaction. Without a receipt that is needed, or
    with one that does not fit, user operations say nothing, and nobody but the payer is heard.
    `by_recipient`: only what goes to the same recipient is company, as where all are observed.
    """
    if transaction.to is None or len(transaction.calldata) > MAX_CALLDATA_BYTES:
        return {log.log_index: () for log in transfers}
    if is_direct_call(transaction, token):
        return {log.log_index: _of_direct_call(transaction, log) for log in transfers}
    steps = Steps()
    bundle = read_bundle(transaction, steps)
    ranges = () if bundle is None else log_ranges(bundle, transaction.to, receipt)
    if ranges is None or (receipt is None and needs_receipt(transaction, token)):
        steps.is_short = True
    ranges = ranges or ()
    operations = {log.log_index: operation_at(ranges, log.log_index) for log in transfers}
    moving = {at for at in operations.values() if at is not None and ranges[at].succeeded}
    found = walk(transaction, token, bundle, moving, steps)
    explaining = _Explaining(transfers, operations, found, by_recipient=by_recipient)
    explained = explaining.all()
    if steps.is_short or explaining.is_short:
        return {index: payers_word(pieces) for index, pieces in explained.items()}
    return _heard_in_operations(explained, transfers, OperationEnds(receipt))


def payers_word(pieces: Iterable[Evidence]) -> tuple[Evidence, ...]:
    return tuple(piece for piece in pieces if piece.signer is Signer.PAYER)


def _heard_in_operations(
    explained: dict[int, tuple[Evidence, ...]],
    transfers: Sequence[TransferLog],
    ends: OperationEnds,
) -> dict[int, tuple[Evidence, ...]]:
    """Leave out what others say of a transfer that its payer's own user operation made.

    He signed all of it; a bundler, or a contract of his, chose what stands around it.
    """
    own = {log.log_index for log in transfers if log.sender in ends.senders_at(log.log_index)}
    return {
        index: payers_word(pieces) if index in own else pieces
        for index, pieces in explained.items()
    }


def _of_direct_call(transaction: Transaction, log: TransferLog) -> tuple[Evidence, ...]:
    """Return the memos behind the arguments of the direct token call that made `log`.

    Solidity ignores bytes behind the arguments, so wallets can append them. They are signed by
    the transaction's sender: the payer, or with `transferFrom` possibly a spender.
    """
    calldata, by = transaction.calldata, transaction.sender
    end = _ARGUMENTS_END[calldata[:SELECTOR_BYTES]]
    if len(calldata) < end:
        return ()
    # By hand, since most payments come this way: one with a memo takes 19 µs, where it takes 28
    # with `read_token_call` and 79 as a leaf of the walk; one without 5, where 9 and 45.
    *payer, to, units = (
        int.from_bytes(calldata[at : at + WORD_BYTES])
        for at in range(SELECTOR_BYTES, end, WORD_BYTES)
    )
    moved = address_of(payer[0]) if payer else by, address_of(to), units
    if moved != (log.sender, log.recipient, log.units):
        return ()
    signer = _signer(by, log)
    return tuple(
        Evidence(memo=memo, source=MemoSource.CALLDATA, signer=signer, by=by)
        for memo in memos_behind(calldata[end:])
    )


def _signer(by: Address | None, log: TransferLog) -> Signer:
    return Signer.PAYER if by == log.sender else Signer.THIRD_PARTY


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Candidates:
    """The calls that may have made a transfer. Transfers that are alike share one.

    `company`: how many calls or transfers cannot be told apart. `is_complete`: one of these calls
    made it for certain; else a call that is not seen may have.
    """

    leaves: Sequence[Leaf] = ()
    company: int = 1
    is_complete: bool = True


class _Explaining:
    """What the calls of one transaction say of its transfers to us."""

    def __init__(
        self,
        transfers: Sequence[TransferLog],
        operations: dict[int, int | None],
        found: Walk,
        *,
        by_recipient: bool,
    ) -> None:
        self._transfers = transfers
        self._operations = operations
        self._found = found
        self._search = TailSearch()
        self._scanned: dict[int | None, list[Tail]] = {}
        self._by_recipient = by_recipient
        self._in_all = Counter(map(self._payee, transfers))
        self._in_operation = Counter(
            (operations[log.log_index], self._payee(log)) for log in transfers
        )
        self._is_short = False

    @property
    def is_short(self) -> bool:
        """Whether something that was found could not be looked at, after `all`."""
        return self._is_short or self._search.is_short

    def all(self) -> dict[int, tuple[Evidence, ...]]:
        made_by = _candidates(self._transfers, self._operations, self._found.leaves)
        explained: dict[int, tuple[Evidence, ...]]
        explained = {log.log_index: () for log in self._transfers}
        # By all that what is said of a transfer depends on.
        said: dict[Hashable, tuple[Evidence, ...]] = {}
        for log in self._transfers[:MAX_EXPLAINED]:
            candidates, operation = made_by[log.log_index], self._operations[log.log_index]
            alike = candidates, operation, log.sender, log.recipient, log.units
            if alike not in said:
                of_leaves = self._of_leaves(log, candidates)
                said[alike] = strongest(of_leaves if candidates.leaves else self._unseen(log))
            explained[log.log_index] = said[alike]
        return explained

    def _of_leaves(self, log: TransferLog, candidates: _Candidates) -> Iterator[Evidence]:
        looked_at = candidates.leaves[:MAX_CANDIDATES]
        self._is_short |= len(looked_at) < len(candidates.leaves)
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
        # Of two, one may be the payer's: then nobody else's is to be taken for his.
        self._is_short |= len(memos) > 1
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
            return self._in_all[self._payee(log)]
        return self._in_operation[tail.operation, self._payee(log)]

    def _payee(self, log: TransferLog) -> Address | None:
        return log.recipient if self._by_recipient else None


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
    pairs = list(zip(logs, leaves, strict=False))
    if len(logs) == len(leaves) and all(leaf.may_have_made(log) for log, leaf in pairs):
        return {log.log_index: _Candidates(leaves=(leaf,)) for log, leaf in pairs}
    company = max(len(logs), len(leaves))
    by_payer: dict[Address, _Candidates] = {}
    for log in logs:
        if log.sender not in by_payer:
            by_payer[log.sender] = _Candidates(
                leaves=[leaf for leaf in leaves if leaf.may_have_made(log)],
                company=company,
                is_complete=len(leaves) >= len(logs),
            )
    return {log.log_index: by_payer[log.sender] for log in logs}
