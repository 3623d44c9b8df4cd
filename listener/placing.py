"""Whether what a node tells of a transaction is where the log that led to it says."""

from oncepaid.domain.chain import Receipt, Transaction, TransferLog
from oncepaid.domain.errors import InconsistentNode


def transaction_of(log: TransferLog, found: Transaction | None) -> Transaction:
    """Return the transaction that made `log`. Raises `InconsistentNode` for any other, or none."""
    place = log.tx_hash, log.block.hash
    if found is None or (found.hash, found.block_hash) != place:
        raise InconsistentNode(f"transaction {log.tx_hash} is not where its log says")
    return found


def receipt_of(log: TransferLog, found: Receipt | None) -> Receipt:
    """Return the receipt that has `log`, as far as its block tells; raises as above.

    A receipt names its transaction in its logs only: whether it has `log` itself is not looked at.
    """
    if found is None or found.block != log.block or not found.succeeded:
        raise InconsistentNode(f"the receipt of {log.tx_hash} is not where its log says")
    return found
