"""The names that payments are stored under."""

import pytest

from oncepaid.domain.payments import PaymentStatus, Reason

PUBLIC_REASONS = [
    "no_memo",
    "unknown_memo",
    "late",
    "underpaid",
    "duplicate",
    "ambiguous_amount",
    "memo_conflict",
    "third_party_memo",
    "own_address",
]


@pytest.mark.parametrize("value", PUBLIC_REASONS)
def test_public_reasons_keep_their_names(value: str) -> None:
    assert Reason(value).value == value


def test_every_reason_has_a_sentence_of_its_own() -> None:
    sentences = [reason.sentence for reason in Reason]
    assert len(set(sentences)) == len(sentences)
    assert all(sentence.endswith(".") and len(sentence) > 20 for sentence in sentences)


def test_public_statuses_keep_their_names() -> None:
    assert {str(status) for status in PaymentStatus} == {
        "seen",
        "matched",
        "credited",
        "unmatched",
        "orphaned",
        "refunded",
        "ignored",
    }
