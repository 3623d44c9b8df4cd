"""A second endpoint's word for large payments, before they count."""

from collections.abc import Sequence

from listener.arbiter import Arbiter
from listener.comparison import Standing
from listener.rpc import HttpRpc
from oncepaid.domain.chain import Address
from oncepaid.domain.payments import PaymentId, StoredLog


class Witness:
    """Asks the endpoint that is not in use; where there is one only, that one again."""

    def __init__(self, rpc: HttpRpc, token: Address) -> None:
        self._rpc = rpc
        self._arbiter = Arbiter(token)

    async def confirm(self, logs: Sequence[StoredLog]) -> set[PaymentId]:
        """Return the payments whose receipt and block the other endpoint has, too.

        Raises `Retryable` errors of that endpoint.
        """
        standings = await self._arbiter.standings(logs, self._rpc.other())
        return {log.id for log in logs if standings[log.id] is Standing.PROVEN}
