"""What a customer is told is what the listener will understand."""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from eth_abi.abi import decode, encode
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_hash.auto import keccak
from hypothesis import given
from hypothesis import strategies as st

from listener.token_calls import TRANSFER
from oncepaid.domain.chain import Address
from oncepaid.domain.memo import Memo, memo_of_nonce, memos_of_tail
from oncepaid.domain.money import MAX_UNITS, Units, parse_usdc
from oncepaid.paying import PayingTerms, instructions, token_name, transfer_calldata
from tests.unit.samples import NOON, SHOP, USDC

MEMO = Memo(bytes.fromhex("00112233445566778899aabbccddeeff"))
ENVELOPE = "5c2e113200112233445566778899aabbccddeeff9eab6a62"
NONCE = bytes.fromhex(ENVELOPE).ljust(32, b"\0")


CALLDATA = (
    "0xa9059cbb"
    + ("00" * 12 + "c3" * 20)
    + "000000000000000000000000000000000000000000000000000000000016e360"
    + ENVELOPE
)


AUTHORIZATION = {
    "types": {
        "EIP712Domain": [
            {"name": "name", "type": "string"},
            {"name": "version", "type": "string"},
            {"name": "chainId", "type": "uint256"},
            {"name": "verifyingContract", "type": "address"},
        ],
        "TransferWithAuthorization": [
            {"name": "from", "type": "address"},
            {"name": "to", "type": "address"},
            {"name": "value", "type": "uint256"},
            {"name": "validAfter", "type": "uint256"},
            {"name": "validBefore", "type": "uint256"},
            {"name": "nonce", "type": "bytes32"},
        ],
    },
    "primaryType": "TransferWithAuthorization",
    "domain": {"name": "USD Coin", "version": "2", "chainId": 8453, "verifyingContract": USDC},
    "message": {
        "from": None,
        "to": SHOP,
        "value": "1500000",
        "validAfter": "0",
        "validBefore": "1795435200",
        "nonce": "0x" + ENVELOPE + "00" * 8,
    },
}
SEPARATOR = "02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f"
"""Of USDC's EIP-712 domain on Base, as the contract has it."""
TYPE_HASH = "7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267"
"""Of TransferWithAuthorization: circlefin/stablecoin-evm, contracts/v2/EIP3009.sol."""


def terms(unique_amount: int | None = 1_500_042, expires_at: datetime | None = NOON) -> PayingTerms:
    return PayingTerms(
        chain_id=8453,
        token=USDC,
        recipient=SHOP,
        price=Units(1_500_000),
        memo=MEMO,
        unique_amount=None if unique_amount is None else Units(unique_amount),
        expires_at=expires_at,
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
        "data_suffix": "0x" + ENVELOPE,
        "calldata": CALLDATA,
        "authorization_nonce": "0x" + ENVELOPE + "00" * 8,
        "unique_amount_units": 1_500_042,
        "unique_amount_usdc": "1.500042",
        "eip681_uri": f"ethereum:{USDC}@8453/transfer?address={SHOP}&uint256=1500042",
        "eth_send_transaction": {
            "chainId": "0x2105",
            "to": USDC,
            "data": CALLDATA,
            "value": "0x0",
        },
        "wallet_send_calls": {
            "version": "2.0.0",
            "chainId": "0x2105",
            "atomicRequired": False,
            "calls": [{"to": USDC, "data": CALLDATA, "value": "0x0"}],
            "capabilities": {"dataSuffix": {"value": "0x" + ENVELOPE, "optional": True}},
        },
        "typed_data": AUTHORIZATION,
        "expires_at": NOON,
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
            expires_at=None,
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
        expires_at=None,
    )
    with pytest.raises(ValueError, match="16 bytes"):
        instructions(bad)


def test_the_authorization_is_hashed_as_the_token_hashes_it() -> None:
    payer = Account.create()
    payload = instructions(terms())["typed_data"]
    payload["message"]["from"] = payer.address
    message = encode_typed_data(full_message=payload)
    assert message.header.hex() == SEPARATOR
    fields = keccak(
        bytes.fromhex(TYPE_HASH)
        + encode(
            ["address", "address", "uint256", "uint256", "uint256", "bytes32"],
            [payer.address, SHOP, 1_500_000, 0, int(NOON.timestamp()), NONCE],
        )
    )
    assert message.body == fields


@pytest.mark.parametrize(
    ("expires_at", "valid_before"),
    [
        (None, 2**256 - 1),
        (NOON + timedelta(microseconds=999_999), int(NOON.timestamp())),
        (datetime(1969, 12, 31, tzinfo=UTC), 0),
        (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), 253_402_300_799),
    ],
)
def test_an_authorization_ends_with_its_job(expires_at: datetime | None, valid_before: int) -> None:
    message = instructions(terms(expires_at=expires_at))["typed_data"]["message"]
    assert message["validBefore"] == str(valid_before)


def test_the_token_has_another_name_on_the_test_network() -> None:
    assert [token_name(chain_id) for chain_id in (8453, 84532)] == ["USD Coin", "USDC"]
