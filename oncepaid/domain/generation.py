"""What a Claude call ended in, and what that means for the job."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, Literal, assert_never

from oncepaid.domain.jobs import AttemptId, JobId
from oncepaid.domain.text import storable_text

FAILURE_ERROR: Final = "AI generation failed"
"""`output_data.error` of every failed job; the hub's clients look for this text."""


class Outcome(StrEnum):
    """Everything an attempt can end in. `course` says what follows from it.

    - `finish`: the answer is the result.
    - `fail`: the answer will not change; the job is `failed`.
    - `again`: it may come out better next time; uses up one of the job's attempts.
    - `wait`: somebody else's service is down, hangs or said no for now; uses up no attempt. What a
      call may have cost is booked, so that waiting ends at the job's cost limit.
    """

    course: Literal["finish", "fail", "again", "wait"]

    SUCCEEDED = "succeeded", "finish"
    UNKNOWN_SERVICE = "unknown_service", "fail"
    INACTIVE_SKILL = "inactive_skill", "fail"
    BAD_INPUT = "bad_input", "fail"
    REFUSED = "refused", "fail"
    CONTEXT_EXCEEDED = "context_exceeded", "fail"
    REQUEST_REJECTED = "request_rejected", "fail"
    LOST = "lost", "fail"
    TRUNCATED = "truncated", "again"
    UNPARSABLE = "unparsable", "again"
    ODD_STOP = "odd_stop", "again"
    INTERNAL_ERROR = "internal_error", "again"
    SCHEMA_MISMATCH = "schema_mismatch", "again"
    UNREADABLE = "unreadable", "wait"
    TIMED_OUT = "timed_out", "wait"
    RATE_LIMITED = "rate_limited", "wait"
    OVERLOADED = "overloaded", "wait"
    SERVER_ERROR = "server_error", "wait"
    NO_CONNECTION = "no_connection", "wait"
    NOT_AUTHORIZED = "not_authorized", "wait"
    CANCELLED = "cancelled", "wait"

    def __new__(
        cls, value: str, course: Literal["finish", "fail", "again", "wait"] = "fail"
    ) -> "Outcome":
        member = str.__new__(cls, value)
        member._value_ = value
        member.course = course
        return member


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """A reply of the model after its type was checked; `text` joins its text blocks."""

    text: str
    stop_reason: str | None
    explanation: str | None
    model: str
    request_id: str | None
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    """What the generator stores of an attempt and the finisher decides on.

    `message` is a sentence for the customer. `output` is set exactly for `SUCCEEDED`.
    """

    outcome: Outcome
    message: str
    output: dict[str, Any] | None = None
    model: str | None = None
    stop_reason: str | None = None
    request_id: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: Decimal | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    output: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TryAgain:
    """`uses_attempt` False gives the attempt back: the job did not cause the failure."""

    uses_attempt: bool


Verdict = Complete | Fail | TryAgain


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one job may use up."""

    max_attempts: int
    max_cost_usd: Decimal


def decide_verdict(
    result: AttemptResult, *, attempts: int, job_cost_usd: Decimal, budget: Budget
) -> Verdict:
    """Say what an attempt means for its job.

    `attempts` counts those used up, this one included; `job_cost_usd` is spent on it so far.
    """
    match result.outcome.course:
        case "finish":
            assert result.output is not None, "a finished attempt has an output"
            return Complete(output=result.output)
        case "fail":
            return Fail(message=result.message)
        case "again" | "wait" if job_cost_usd >= budget.max_cost_usd:
            return Fail(message=f"{result.message} (the job's cost limit is used up)")
        case "again" if attempts >= budget.max_attempts:
            return Fail(message=f"{result.message} (after {attempts} attempts)")
        case "again":
            return TryAgain(uses_attempt=True)
        case "wait":
            return TryAgain(uses_attempt=False)
        case _:
            assert_never(result.outcome.course)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredJob:
    """A job whose current attempt has ended, as the finisher decides on it.

    `attempts` counts those used up, `failures_in_row` those since the job last moved on,
    `cost_usd` is what all of them cost; times are in seconds.
    """

    id: JobId
    uuid: str
    attempt: AttemptId
    attempts: int
    failures_in_row: int
    service_key: str | None
    cost_usd: Decimal
    paid_block_time: datetime | None
    generating_s: float
    waited_s: float
    result: AttemptResult


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedJob:
    """A verdict that has just been written."""

    job: AnsweredJob
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedJob:
    """A job whose result the host's constraints or triggers do not let in; tried again later."""

    job: AnsweredJob
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finishing:
    """What one transaction of the finisher did."""

    finished: list[FinishedJob]
    refused: list[RefusedJob]


def failure_output(message: str) -> dict[str, Any]:
    """Return the `output_data` of a failed job."""
    return {"error": FAILURE_ERROR, "message": message}


Validator = Callable[[dict[str, Any]], str | None]
"""Returns what is wrong with an output, or None."""


def judge_answer(answer: ModelAnswer, validate: Validator | None) -> AttemptResult:
    """Turn the model's reply into a result, believing nothing before `stop_reason` says so."""

    def ended(
        outcome: Outcome, message: str, output: dict[str, Any] | None = None
    ) -> AttemptResult:
        return AttemptResult(
            outcome=outcome,
            message=storable_text(message),
            output=output,
            model=answer.model,
            stop_reason=answer.stop_reason,
            request_id=answer.request_id,
            input_tokens=answer.input_tokens,
            output_tokens=answer.output_tokens,
        )

    match answer.stop_reason:
        case "end_turn" | "stop_sequence":
            pass
        case "refusal":
            why = f": {answer.explanation}" if answer.explanation else ""
            return ended(Outcome.REFUSED, f"the model declined this request{why}")
        case "max_tokens":
            return ended(Outcome.TRUNCATED, "the answer was cut off at the token limit")
        case "model_context_window_exceeded":
            return ended(Outcome.CONTEXT_EXCEEDED, "the input is too long for the model")
        case other:
            return ended(Outcome.ODD_STOP, f"the answer ended with stop_reason {other!r}")
    output = extract_object(answer.text)
    if output is None:
        return ended(Outcome.UNPARSABLE, "the answer contains no JSON object")
    problem = validate(output) if validate else None
    if problem is not None:
        return ended(Outcome.SCHEMA_MISMATCH, f"the answer does not fit its schema: {problem}")
    return ended(Outcome.SUCCEEDED, "done", output)


MAX_OPENINGS: Final = 200
"""How many `{` of a prose answer are tried as the start of the object."""
_FENCE = re.compile(r"```[a-zA-Z]*[^\S\n]*\n(.*?)```", re.DOTALL)


def extract_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object in an answer: the whole text, a fenced block, or inside prose.

    Of several in prose the longest wins: examples that a model quotes are shorter than its answer.
    """
    for candidate in (text, *_FENCE.findall(text)):
        found = _object_of(candidate.strip())
        if found is not None:
            return found
    best: tuple[int, dict[str, Any]] | None = None
    at = text.find("{")
    for _ in range(MAX_OPENINGS):
        if at < 0:
            break
        found, end = _object_at(text, at)
        if found is not None and (best is None or end - at > best[0]):
            best = (end - at, found)
        at = text.find("{", end)
    return best[1] if best else None


def _reject_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of range")
    return value


_DECODER = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_finite)


def _object_at(text: str, at: int) -> tuple[dict[str, Any] | None, int]:
    """Return the object that starts at `at` and where it ends; else None and the next place."""
    try:
        value, end = _DECODER.raw_decode(text, at)
        if isinstance(value, dict) and value:
            return storable(value), end
    except (ValueError, RecursionError):
        pass
    return None, at + 1


def _object_of(text: str) -> dict[str, Any] | None:
    found, end = _object_at(text, 0)
    return found if found is not None and end == len(text) else None


MAX_DEPTH: Final = 64


def storable(value: Any, depth: int = 0) -> Any:
    """Return a JSON value as PostgreSQL's jsonb can hold it: no NUL, no unpaired surrogate.

    Raises `ValueError` for one that is nested deeper than `MAX_DEPTH`.
    """
    if depth > MAX_DEPTH:
        raise ValueError("nested too deep")
    match value:
        case str():
            return storable_text(value)
        case dict():
            return {storable_text(k): storable(v, depth + 1) for k, v in value.items()}
        case list():
            return [storable(item, depth + 1) for item in value]
        case _:
            return value
