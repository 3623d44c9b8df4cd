"""What `job bind` takes for the name of a payment."""

import pytest

from oncepaid.commands.binding import reference_of
from oncepaid.domain.chain import Address
from oncepaid.domain.memo import Memo, Reference, envelope_of

PAYER = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
ESCROW = "0xBdEA0D1bcC5966192B070Fdf62aB4EF5b4420cff"
NONCE = "0x" + "ab" * 32
OF_A_MEMO = "0x" + envelope_of(Memo(bytes(16))).hex() + "00" * 8


def _named(**options: str) -> Reference:
    every = {"payer": None, "nonce": None, "contract": None, "reference": None, **options}
    return reference_of(**every, believed={Address(ESCROW.lower())})


def test_an_authorization_is_named_by_its_payer_and_nonce() -> None:
    for payer in (PAYER, PAYER.lower(), "0x" + PAYER[2:].upper()):
        found = _named(payer=payer, nonce=NONCE)
        assert found == Reference(issuer=Address(PAYER.lower()), value=b"\xab" * 32)


def test_a_contract_names_payments_by_any_bytes() -> None:
    for size in (1, 16, 64):
        found = _named(contract=ESCROW, reference="0x" + "C0" * size)
        assert found == Reference(issuer=Address(ESCROW.lower()), value=b"\xc0" * size)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "needs --payer and --nonce, or else --contract and --reference"),
        ({"payer": PAYER}, "needs --payer and --nonce"),
        ({"payer": PAYER, "reference": "0x01"}, "needs --payer and --nonce"),
        ({"payer": PAYER, "nonce": NONCE, "contract": ESCROW}, "needs --payer and --nonce"),
        ({"payer": "me", "nonce": NONCE}, "--payer: 'me' is not an address"),
        ({"payer": PAYER.replace("C5", "c5"), "nonce": NONCE}, "--payer: .* EIP-55 checksum"),
        ({"payer": PAYER, "nonce": NONCE[2:]}, "--nonce: must be 0x"),
        ({"payer": PAYER, "nonce": "0x"}, "--nonce: must be 0x"),
        ({"payer": PAYER, "nonce": "0xab cd"}, "--nonce: must be 0x"),
        ({"payer": PAYER, "nonce": NONCE + "0"}, "--nonce: must be 0x"),
        ({"payer": PAYER, "nonce": NONCE[:-2]}, "--nonce: must have 32 bytes, not 31"),
        ({"payer": PAYER, "nonce": OF_A_MEMO}, f"--nonce: it carries the memo 0x{'00' * 16}"),
        ({"contract": ESCROW, "reference": "0x" + "00" * 65}, "--reference: must have 1 to 64"),
        ({"contract": PAYER, "reference": "0x01"}, f"--contract: {PAYER.lower()} is not one of"),
        ({"contract": ESCROW[:-1], "reference": "0x01"}, "--contract: .* is not an address"),
    ],
)
def test_what_names_no_payment_is_refused_by_the_option(options: dict[str, str], line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}"):
        _named(**options)
