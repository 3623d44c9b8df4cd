"""Why nothing is stored of a transaction."""

from dataclasses import replace
from typing import Any

import pytest

from oncepaid.domain.absent import MAX_TOLD, Watched, explain_absent
from oncepaid.domain.chain import (
    TRANSFER_TOPIC,
    ZERO_ADDRESS,
    Address,
    BlockHash,
    BlockRef,
    EventLog,
    Receipt,
)
from tests.unit.samples import PAYER, SHOP, STRANGER, USDC

WATCHED = Watched(token=USDC, recipients=frozenset({SHOP}), cursor=120, start=50)
FAKE = Address("0x" + "fa" * 20)


def event(units: int = 500_000, **changed: Any) -> EventLog:
    to = changed.pop("to", SHOP)
    sender = changed.pop("sender", PAYER)
    topics = tuple(bytes.fromhex(word[2:].rjust(64, "0")) for word in (TRANSFER_TOPIC, sender, to))
    log = EventLog(log_index=1, address=USDC, topics=topics, data=units.to_bytes(32))
    return replace(log, **changed)


def receipt(*events: EventLog, number: int = 100, succeeded: bool = True) -> Receipt:
    return Receipt(
        block=BlockRef(number=number, hash=BlockHash("0x" + "ab" * 32)),
        succeeded=succeeded,
        transfers=(),
        events=events,
    )


@pytest.mark.parametrize(
    ("found", "is_known", "words"),
    [
        (None, False, "The node knows no such transaction"),
        (None, True, "is in no block yet"),
        (receipt(event(), succeeded=False), True, "failed in block 100: it moved nothing."),
        (receipt(), True, "transfers no token at all."),
        (receipt(event(topics=(b"\x01" * 32,))), True, "transfers no token at all."),
        (receipt(event(sender="0x1" + "0" * 63)), True, "transfers no token at all."),
        (
            receipt(event(to=STRANGER)),
            True,
            f"0.50 USDC went from {PAYER} to {STRANGER}, which is none of chain.recipients.",
        ),
        (
            receipt(event(address=FAKE)),
            True,
            f"Another token, {FAKE}, was moved from {PAYER} to {SHOP}: only {USDC} (chain.token)"
            " counts.",
        ),
        (receipt(event(0)), True, f"A transfer of 0 USDC from {PAYER} to {SHOP} proves nothing"),
        (receipt(event(sender=ZERO_ADDRESS)), True, "from newly made money to"),
        (
            receipt(event(), number=130),
            True,
            "which is ours. Block 130 is not read yet: the cursor is at 120, 10 below.",
        ),
        (receipt(event(), number=50), True, "Reading began after block 50, and this is block 50"),
        (receipt(event()), True, "`oncepaid rescan --from 100 --to 100` stores it."),
    ],
)
def test_each_cause(found: Receipt | None, is_known: bool, words: str) -> None:
    (sentence,) = explain_absent(found, WATCHED, is_known=is_known)
    assert words in sentence


def test_a_chain_that_was_never_read() -> None:
    (sentence,) = explain_absent(
        receipt(event()), replace(WATCHED, cursor=None, start=None), is_known=True
    )
    assert sentence.endswith("start the daemon.")


def test_every_recipient_is_ours_where_all_are_observed() -> None:
    (sentence,) = explain_absent(
        receipt(event(to=STRANGER)), replace(WATCHED, recipients=None), is_known=True
    )
    assert "which is ours" in sentence


def test_ours_come_first_and_the_rest_is_counted() -> None:
    others = [event(to=STRANGER) for _ in range(MAX_TOLD + 2)]
    told = explain_absent(receipt(*others, event()), WATCHED, is_known=True)
    assert "which is ours" in told[0]
    assert len(told) == MAX_TOLD + 1
    assert told[-1] == "There are 3 transfers more."
