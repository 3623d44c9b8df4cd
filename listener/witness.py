"""A second endpoint's word for large payments, before they count."""

from collections.abc import Sequence

from listener.arbiter import Arbiter
from listener.rpc import ChainReader, HttpRpc
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
        other = self._rpc.other()
        hashes = await ChainReader(other).hashes(sorted({log.block.number for log in logs}))
        standing = [log for log in logs if hashes[log.block.number] == log.block.hash]
        return await self._arbiter.proven(standing, other)
