"""The demo as data: when what happened, and whether all ended as it should. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from db.reports import Row
from devchain.pay import Way

_MEMO_SOURCES = {Way.MEMO: "calldata", Way.AUTHORIZATION: "authorization", Way.AMOUNT: None}
_HOW_FOUND = {
    Way.MEMO: "by the memo behind the calldata",
    Way.AUTHORIZATION: "by the memo in the signed nonce",
    Way.AMOUNT: "by its unique amount",
}


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A payment as its payer saw it; times are Unix seconds."""

    tx_hash: str
    sent_at_s: float
    receipt_at_s: float
    block_number: int


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Something that happened, `after_ms` after the transaction was sent."""

    after_ms: float
    text: str


def timeline_of(way: Way, sent: Sent, job: Row) -> list[Moment]:
    """Return what is known to have happened, in the order of time.

    Zero is when the transaction was sent: a block's own time is only known in whole seconds.
    """
    payment = _payment_of(sent, job) or {}
    attempt = job["attempts"][-1] if job["attempts"] else {}
    known: list[tuple[datetime | None, str]] = [
        (payment.get("seen_at"), "payment seen by the daemon and stored"),
        (payment.get("matched_at"), f"matched to the job, {_HOW_FOUND[way]}"),
        (
            payment.get("credited_at"),
            "credited, job paid (up to 1.00 USDC an included block is enough)",
        ),
        (attempt.get("started_at"), "generation started"),
        (attempt.get("finished_at"), _answer_text(attempt)),
        (job["completed_at"], f"job {job['status']}"),
    ]
    moments = [
        Moment(after_ms=0.0, text="transaction sent"),
        _moment(
            sent,
            sent.receipt_at_s,
            f"receipt seen by the payer: mined in block {sent.block_number}",
        ),
        *(_moment(sent, at.timestamp(), text) for at, text in known if at is not None),
    ]
    return sorted(moments, key=lambda moment: moment.after_ms)


def _moment(sent: Sent, at_s: float, text: str) -> Moment:
    return Moment(after_ms=(at_s - sent.sent_at_s) * 1000, text=text)


def _answer_text(attempt: Row) -> str:
    if attempt.get("outcome") != "succeeded":
        return f"Claude's answer: {attempt.get('outcome')}, {attempt.get('message')}"
    tokens = f"{attempt['input_tokens']} + {attempt['output_tokens']} tokens"
    return f"answer from {attempt['model']}, {tokens}"


def _payment_of(sent: Sent, job: Row) -> dict[str, Any] | None:
    found = [payment for payment in job["payments"] if payment["tx_hash"] == sent.tx_hash]
    return found[0] if len(found) == 1 else None


def problems_of_job(way: Way, sent: Sent, job: Row) -> list[str]:
    """Return what is wrong with a job that was paid by one transaction; empty if nothing."""
    name = f"job {job['job_uuid']} ({job['service_key']})"
    problems = []
    if job["status"] != "completed":
        problems.append(f"{name} is {job['status']}, not completed")
    elif not job["output_data"] or job["completed_at"] is None:
        problems.append(f"{name} is completed without a result")
    payment = _payment_of(sent, job)
    if payment is None or len(job["payments"]) != 1:
        problems.append(f"{name} has {len(job['payments'])} payments, not the one that was sent")
    elif payment["status"] != "credited":
        problems.append(f"{name}: its payment is {payment['status']}, not credited")
    elif payment["memo_source"] != _MEMO_SOURCES[way]:
        problems.append(f"{name}: its memo was found in {payment['memo_source']}")
    return problems


def problems_of_stray(payments: Sequence[Row]) -> list[str]:
    """Return what is wrong with a payment that is nobody's; `payments` are its transaction's."""
    if len(payments) != 1:
        return [f"the payment without a memo has {len(payments)} rows, not 1"]
    (payment,) = payments
    if (payment["status"], payment["reason"]) != ("unmatched", "no_memo"):
        found = f"{payment['status']} ({payment['reason']})"
        return [f"the payment without a memo is {found}, not unmatched (no_memo)"]
    return []
