"""A transaction or a receipt that is not where its log says is not believed."""

from dataclasses import replace
from typing import Any

import pytest

from listener.placing import receipt_of, transaction_of
from oncepaid.domain.chain import BlockHash, BlockRef, TxHash
from oncepaid.domain.errors import InconsistentNode
from tests.unit.listener.calls import receipt, transaction, transfer, transfer_log

LOG = transfer_log()
FOUND = replace(transaction(transfer()), block_hash=LOG.block.hash)
RECEIPT = receipt()
OTHER = "0x" + "09" * 32


def test_what_is_where_its_log_says() -> None:
    assert transaction_of(LOG, FOUND) is FOUND
    assert receipt_of(LOG, RECEIPT) is RECEIPT


@pytest.mark.parametrize(
    "found",
    [
        None,
        replace(FOUND, hash=TxHash(OTHER)),
        replace(FOUND, block_hash=BlockHash(OTHER)),
        replace(FOUND, block_hash=None),
    ],
)
def test_a_transaction_elsewhere(found: Any) -> None:
    with pytest.raises(InconsistentNode, match=r"transaction .* is not where its log says"):
        transaction_of(LOG, found)


@pytest.mark.parametrize(
    "found",
    [
        None,
        replace(RECEIPT, succeeded=False),
        replace(RECEIPT, block=BlockRef(number=LOG.block.number, hash=BlockHash(OTHER))),
        replace(RECEIPT, block=replace(LOG.block, number=2)),
    ],
)
def test_a_receipt_elsewhere(found: Any) -> None:
    with pytest.raises(InconsistentNode, match=r"receipt of .* is not where its log says"):
        receipt_of(LOG, found)
