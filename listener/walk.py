"""The walk from a transaction's calldata to the calls of the token. Pure, bounded, never raises.

What is read here is what somebody wrote, not what happened: a contract may ignore its calldata.
Only two facts are certain. The transaction called `to` with these bytes, and a known EntryPoint
called the sender of an operation with the bytes that he signed. So nobody but these two accounts is
ever taken for the signer of bytes that somebody else sent: else anyone could put a call of a
stranger's wallet, which never happens, beside that stranger's payment.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Final, assert_never

from listener.abi import Steps
from listener.operations import Bundle
from listener.tails import Tail
from listener.token_calls import SELECTOR_BYTES, read_token_call
from listener.wrappers import InnerCall, Maker, open_wrapper
from oncepaid.domain.chain import Address, Transaction, TransferLog
from oncepaid.domain.payments import MemoSource

MAX_CALLDATA_BYTES: Final = 128 * 1024
"""Geth's limit of a transaction's size; longer calldata is not to be walked."""
MAX_DEPTH: Final = 8
MAX_CALLS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A call that moves the token. `payer` None: whoever made the call, which is not known.

    `tails`: its own, then those of the calls around it, from inside out.
    """

    payer: Address | None
    recipient: Address
    units: int
    operation: int | None
    tails: tuple[Tail, ...]

    def may_have_made(self, log: TransferLog) -> bool:
        """Say whether it is for this transfer's payer, recipient and amount."""
        wanted = log.sender, log.recipient, log.units
        return (self.payer or log.sender, self.recipient, self.units) == wanted


@dataclass(slots=True, kw_only=True)
class Walk:
    """What was found. `covering`: the tails that speak of all that an operation does, or the
    transaction (None). `opaque`: the calls that lead on to where nobody can see."""

    leaves: list[Leaf] = field(default_factory=list)
    opaque: list[Tail] = field(default_factory=list)
    covering: dict[int | None, tuple[Tail, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """`caller` makes it, `account` is who acts in it: the target, or for a DELEGATECALL the caller.

    `is_certain`: the transaction itself made it, so that whatever the account does is its doing.
    """

    caller: Address | None
    target: Address | None
    account: Address | None
    data: memoryview
    signer: Address | None
    operation: int | None
    around: tuple[Tail, ...]
    is_certain: bool = False


def walk(
    transaction: Transaction,
    token: Address,
    bundle: Bundle | None,
    operations: Collection[int],
    steps: Steps,
) -> Walk:
    """Walk the transaction's own call, or these of the operations that it bundles.

    `steps` tells afterwards whether all of it was read.
    """
    walker = _Walker(token, steps)
    if bundle is None:
        walker.visit(_outer_call(transaction), depth=1)
    else:
        walker.walk_bundle(bundle, operations, transaction.sender)
    return walker.found


def _outer_call(transaction: Transaction) -> _Call:
    return _Call(
        caller=transaction.sender,
        target=transaction.to,
        account=transaction.to,
        data=memoryview(transaction.calldata),
        signer=transaction.sender,
        operation=None,
        around=(),
        is_certain=True,
    )


class _Walker:
    def __init__(self, token: Address, steps: Steps) -> None:
        self.found = Walk()
        self._token = token
        self._steps = steps
        self._calls_left = MAX_CALLS

    def walk_bundle(self, bundle: Bundle, operations: Collection[int], bundler: Address) -> None:
        tail = Tail(data=bundle.tail, source=MemoSource.WRAPPER, by=bundler, operation=None)
        self.found.covering[None] = (tail,)
        for index, operation in enumerate(bundle.operations):
            if index not in operations:
                continue
            call = _Call(
                caller=None,
                target=operation.sender,
                account=operation.sender,
                data=operation.calldata,
                signer=operation.sender,
                operation=index,
                around=(tail,),
            )
            self.visit(call, depth=2)

    def visit(self, call: _Call, *, depth: int) -> None:
        """Look at a call and, in the order in which they run, at all that it carries."""
        if depth > MAX_DEPTH or self._calls_left <= 0:
            self._steps.is_short = True
            return
        self._calls_left -= 1
        if call.target == self._token:
            self._visit_token(call)
            return
        opened = open_wrapper(call.data, self._steps)
        if opened is None:
            self.found.opaque.append(_tail(call, call.data[SELECTOR_BYTES:], MemoSource.SCAN))
            return
        own = (_tail(call, data, MemoSource.WRAPPER) for data in opened.tails)
        around = (*own, *call.around)
        self.found.covering.setdefault(call.operation, around)
        for inner in opened.calls:
            self.visit(_inner_call(call, opened.maker, inner, around), depth=depth + 1)

    def _visit_token(self, call: _Call) -> None:
        """The token's other functions move nothing; its code in another's name moves no USDC."""
        if call.account != self._token:
            return
        made = read_token_call(call.data, call.caller, self._steps)
        if made is not None:
            leaf = Leaf(
                payer=made.payer,
                recipient=made.recipient,
                units=made.units,
                operation=call.operation,
                tails=(_tail(call, made.tail, MemoSource.CALLDATA), *call.around),
            )
            self.found.leaves.append(leaf)


def _inner_call(call: _Call, maker: Maker, inner: InnerCall, around: tuple[Tail, ...]) -> _Call:
    caller, signer = call.account, call.signer
    match maker:
        case Maker.ITSELF:
            return replace(call, data=inner.data, around=around)
        case Maker.ACCOUNT:
            signer = call.account if call.is_certain else call.signer
        case Maker.RELAY:
            pass
        case Maker.DELEGATOR:
            caller = None
        case _:
            assert_never(maker)
    return _Call(
        caller=caller,
        target=inner.target,
        account=caller if inner.delegated else inner.target,
        data=inner.data,
        signer=signer,
        operation=call.operation,
        around=around,
    )


def _tail(call: _Call, data: memoryview, source: MemoSource) -> Tail:
    return Tail(data=data, source=source, by=call.signer, operation=call.operation)
