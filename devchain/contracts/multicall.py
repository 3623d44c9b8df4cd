"""Multicall3: several calls in one transaction, each made by Multicall3 itself."""

from collections.abc import Sequence
from enum import StrEnum

from devchain.contracts.sending import Call, encode_call, send
from devchain.wallet import Wallet

MULTICALL3 = "0xcA11bde05977b3631167028862bE2a173976CA11"


class Form(StrEnum):
    """A function of Multicall3."""

    AGGREGATE = "aggregate((address,bytes)[])"
    """All or nothing."""
    TRY_AGGREGATE = "tryAggregate(bool,(address,bytes)[])"
    """Calls may fail, all of them or none."""
    AGGREGATE3 = "aggregate3((address,bool,bytes)[])"
    """Each call says whether it may fail."""
    AGGREGATE3_VALUE = "aggregate3Value((address,bool,uint256,bytes)[])"
    """As `aggregate3`, with value."""


def multicall_data(
    calls: Sequence[Call], *, form: Form = Form.AGGREGATE3, may_fail: bool = False
) -> bytes:
    """Return the call data; `may_fail` lets the others go on when one fails."""
    match form:
        case Form.AGGREGATE:
            return encode_call(form, [(call.to, call.data) for call in calls])
        case Form.TRY_AGGREGATE:
            return encode_call(form, not may_fail, [(call.to, call.data) for call in calls])
        case Form.AGGREGATE3:
            return encode_call(form, [(call.to, may_fail, call.data) for call in calls])
        case Form.AGGREGATE3_VALUE:
            parts = [(call.to, may_fail, call.value, call.data) for call in calls]
            return encode_call(form, parts)


async def multicall(
    sender: Wallet,
    calls: Sequence[Call],
    *,
    form: Form = Form.AGGREGATE3,
    may_fail: bool = False,
    tail: bytes = b"",
) -> str:
    """Send the calls in one transaction, with the sender's own `tail`."""
    data = multicall_data(calls, form=form, may_fail=may_fail)
    return await send(sender, MULTICALL3, data + tail)
