"""The codes and words that `job create` prints for a person."""

import re
from datetime import timedelta
from typing import Any

import pytest
import segno
from eth_utils.address import to_checksum_address

from oncepaid.commands.bill import QUIET_MODULES, code_of, print_bill
from oncepaid.domain.memo import Memo
from oncepaid.domain.money import Units
from oncepaid.paying import PayingTerms, instructions
from tests.unit.samples import NOON, SHOP, USDC

RECIPIENT = to_checksum_address(SHOP)
TOKEN = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
LIGHT_ABOVE_AND_BELOW = {"█": (0, 0), "▀": (0, 1), "▄": (1, 0), " ": (1, 1)}


def bill(unique_amount: int | None = 500_042) -> dict[str, Any]:
    terms = PayingTerms(
        chain_id=8453,
        token=USDC,
        recipient=SHOP,
        price=Units(500_000),
        memo=Memo(bytes(range(16))),
        unique_amount=None if unique_amount is None else Units(unique_amount),
        expires_at=NOON + timedelta(hours=1),
    )
    return {"id": 7, "job_uuid": "an-uuid", "service_key": "write", **instructions(terms)}


def dark_modules(code: str) -> list[list[int]]:
    """Read a code of half blocks back: 1 is dark."""
    rows: list[list[int]] = []
    for line in code.splitlines():
        halves = [LIGHT_ABOVE_AND_BELOW[block] for block in line]
        rows += [[above for above, _ in halves], [below for _, below in halves]]
    return rows


@pytest.mark.parametrize("text", [RECIPIENT, bill()["eip681_uri"]])
def test_a_code_has_the_modules_of_its_text_and_a_light_margin(text: str) -> None:
    expected = [list(row) for row in segno.make_qr(text).matrix_iter(border=QUIET_MODULES)]
    drawn = dark_modules(code_of(text))
    assert drawn[: len(expected)] == expected
    assert len(drawn) - len(expected) in (0, 1)


def test_what_a_person_reads(capsys: pytest.CaptureFixture[str]) -> None:
    told = bill()
    print_bill(told, with_codes=True)
    text = capsys.readouterr().out
    assert "until 2026-11-23 13:00:00 UTC" in text
    for name in ("eip681_uri", "calldata", "authorization_nonce", "data_suffix"):
        assert told[name] in text
    # The bare address comes before the request, and each code under its words.
    order = [
        f"exactly 0.500042 USDC on Base to\n  {RECIPIENT}",
        code_of(RECIPIENT),
        told["eip681_uri"],
        code_of(told["eip681_uri"]),
        f"names {TOKEN} as the recipient,\n  stop",
        "0.500000 USDC or more",
    ]
    places = [text.find(part) for part in order]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize("with_codes", [None, False])
def test_no_code_is_printed_into_a_file(
    capsys: pytest.CaptureFixture[str], with_codes: bool | None
) -> None:
    print_bill(bill(), with_codes=with_codes)
    text = capsys.readouterr().out
    assert not re.search("[█▀▄]", text)
    assert "exactly 0.500042 USDC" in text


def test_without_a_unique_amount_only_the_memo_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    print_bill(bill(unique_amount=None), with_codes=True)
    text = capsys.readouterr().out
    assert "exactly" not in text
    assert not re.search("[█▀▄]", text)
    assert bill()["calldata"] in text
