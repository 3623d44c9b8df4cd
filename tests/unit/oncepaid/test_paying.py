"""What a customer is told is what the listener will understand."""

from urllib.parse import parse_qs, urlsplit

import pytest
from eth_abi.abi import decode, encode
from hypothesis import given
from hypothesis import strategies as st

from listener.calldata import TRANSFER
from oncepaid.domain.chain import Address
from oncepaid.domain.memo import Memo, memo_of_nonce, memos_of_tail
from oncepaid.domain.money import MAX_UNITS, Units, parse_usdc
from oncepaid.paying import PayingTerms, instructions, transfer_calldata
from tests.unit.samples import SHOP, USDC

MEMO = Memo(bytes.fromhex("00112233445566778899aabbccddeeff"))
ENVELOPE = "5c2e113200112233445566778899aabbccddeeff9eab6a62"


def terms(unique_amount: int | None = 1_500_042) -> PayingTerms:
    return PayingTerms(
        chain_id=8453,
        token=USDC,
        recipient=SHOP,
        price=Units(1_500_000),
        memo=MEMO,
        unique_amount=None if unique_amount is None else Units(unique_amount),
    )


def test_every_way_to_pay() -> None:
    assert instructions(terms()) == {
        "chain_id": 8453,
        "token": USDC,
        "recipient": SHOP,
        "amount_usdc": "1.500000",
        "amount_units": 1_500_000,
        "memo": "0x00112233445566778899aabbccddeeff",
        "memo_envelope": "0x" + ENVELOPE,
        "calldata": "0xa9059cbb"
        + ("00" * 12 + "c3" * 20)
        + "000000000000000000000000000000000000000000000000000000000016e360"
        + ENVELOPE,
        "authorization_nonce": "0x" + ENVELOPE + "00" * 8,
        "unique_amount_units": 1_500_042,
        "unique_amount_usdc": "1.500042",
        "eip681_uri": f"ethereum:{USDC}@8453/transfer?address={SHOP}&uint256=1500042",
    }


def test_without_a_unique_amount_there_is_no_uri() -> None:
    told = instructions(terms(unique_amount=None))
    assert told["unique_amount_units"] is None
    assert told["unique_amount_usdc"] is None
    assert told["eip681_uri"] is None


addresses = st.binary(min_size=20, max_size=20).map(lambda raw: Address("0x" + raw.hex()))
units = st.integers(0, MAX_UNITS).map(Units)


@given(addresses, units)
def test_the_call_is_what_the_abi_says(recipient: Address, amount: Units) -> None:
    call = bytes.fromhex(transfer_calldata(recipient, amount)[2:])
    assert call == TRANSFER + encode(["address", "uint256"], [recipient, amount])


@given(addresses, units, st.binary(min_size=16, max_size=16).map(Memo), units)
def test_what_is_told_can_be_read_back(
    recipient: Address, price: Units, memo: Memo, unique: Units
) -> None:
    told = instructions(
        PayingTerms(
            chain_id=1,
            token=USDC,
            recipient=recipient,
            price=price,
            memo=memo,
            unique_amount=unique,
        )
    )
    call = bytes.fromhex(told["calldata"][2:])
    assert decode(["address", "uint256"], call[4:68]) == (recipient, price)
    assert memos_of_tail(call[68:]) == (memo,)
    assert memo_of_nonce(bytes.fromhex(told["authorization_nonce"][2:])) == memo
    assert parse_usdc(told["amount_usdc"]) == price
    assert parse_usdc(told["unique_amount_usdc"]) == unique
    uri = urlsplit(told["eip681_uri"])
    assert (uri.scheme, uri.path) == ("ethereum", f"{USDC}@1/transfer")
    assert parse_qs(uri.query) == {"address": [recipient], "uint256": [str(unique)]}


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_memo_of_another_length_is_never_told(size: int) -> None:
    bad = PayingTerms(
        chain_id=1,
        token=USDC,
        recipient=SHOP,
        price=Units(1),
        memo=Memo(bytes(size)),
        unique_amount=None,
    )
    with pytest.raises(ValueError, match="16 bytes"):
        instructions(bad)
