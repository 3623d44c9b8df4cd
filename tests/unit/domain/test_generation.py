"""What an answer of the model is worth, and what follows from it for the job."""

import json
import math
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncepaid.domain.generation import (
    MAX_DEPTH,
    AttemptResult,
    Budget,
    Complete,
    Fail,
    ModelAnswer,
    Outcome,
    TryAgain,
    Verdict,
    decide_verdict,
    extract_object,
    failure_output,
    judge_answer,
    storable,
)

BUDGET = Budget(max_attempts=3, max_cost_usd=Decimal("1.00"))
FINAL = [
    "unknown_service",
    "inactive_skill",
    "bad_input",
    "refused",
    "context_exceeded",
    "request_rejected",
    "lost",
]
AGAIN = ["truncated", "unparsable", "schema_mismatch", "odd_stop", "internal_error"]
WAIT = [
    "unreadable",
    "timed_out",
    "rate_limited",
    "overloaded",
    "server_error",
    "no_connection",
    "not_authorized",
    "cancelled",
]
CHEAP = Decimal("0.999999")
SPENT = Decimal("1.00")


def verdict_of(outcome: str, attempts: int, cost: Decimal) -> Verdict:
    output = {"a": 1} if outcome == "succeeded" else None
    result = AttemptResult(outcome=Outcome(outcome), message="why", output=output)
    return decide_verdict(result, attempts=attempts, job_cost_usd=cost, budget=BUDGET)


def test_every_outcome_is_in_one_of_the_tables() -> None:
    assert sorted(["succeeded", *FINAL, *AGAIN, *WAIT]) == sorted(str(o) for o in Outcome)


@pytest.mark.parametrize("attempts", [1, 3, 99])
@pytest.mark.parametrize("cost", [Decimal(0), Decimal(99)])
def test_a_result_is_taken_whatever_it_cost(attempts: int, cost: Decimal) -> None:
    assert verdict_of("succeeded", attempts, cost) == Complete(output={"a": 1})


@pytest.mark.parametrize("outcome", FINAL)
def test_what_will_not_change_fails_at_once(outcome: str) -> None:
    assert verdict_of(outcome, 1, Decimal(0)) == Fail(message="why")


@pytest.mark.parametrize("outcome", AGAIN)
@pytest.mark.parametrize(
    ("attempts", "cost", "verdict"),
    [
        (1, CHEAP, TryAgain(uses_attempt=True)),
        (2, CHEAP, TryAgain(uses_attempt=True)),
        (3, CHEAP, Fail(message="why (after 3 attempts)")),
        (4, CHEAP, Fail(message="why (after 4 attempts)")),
        (1, SPENT, Fail(message="why (the job's cost limit is used up)")),
        (3, SPENT, Fail(message="why (the job's cost limit is used up)")),
    ],
)
def test_what_may_come_out_better_uses_attempts_up(
    outcome: str, attempts: int, cost: Decimal, verdict: Verdict
) -> None:
    assert verdict_of(outcome, attempts, cost) == verdict


@pytest.mark.parametrize("outcome", WAIT)
@pytest.mark.parametrize(
    ("attempts", "cost", "verdict"),
    [
        (1, CHEAP, TryAgain(uses_attempt=False)),
        (3, CHEAP, TryAgain(uses_attempt=False)),
        (1000, CHEAP, TryAgain(uses_attempt=False)),
        (1, SPENT, Fail(message="why (the job's cost limit is used up)")),
    ],
)
def test_a_job_waits_while_somebody_elses_service_is_down(
    outcome: str, attempts: int, cost: Decimal, verdict: Verdict
) -> None:
    assert verdict_of(outcome, attempts, cost) == verdict


def test_clients_find_the_failure_text() -> None:
    assert failure_output("why") == {"error": "AI generation failed", "message": "why"}


def answer(
    text: str, stop_reason: str | None = "end_turn", explanation: str | None = None
) -> ModelAnswer:
    return ModelAnswer(
        text=text,
        stop_reason=stop_reason,
        explanation=explanation,
        model="model-x",
        request_id="req_1",
        input_tokens=3,
        output_tokens=5,
    )


GOOD = '{"a": 1}'


@pytest.mark.parametrize(
    ("given_answer", "outcome", "words"),
    [
        (answer(GOOD), Outcome.SUCCEEDED, "done"),
        (answer(GOOD, "stop_sequence"), Outcome.SUCCEEDED, "done"),
        (answer(GOOD, "refusal"), Outcome.REFUSED, "declined this request"),
        (answer(GOOD, "refusal", "too spicy"), Outcome.REFUSED, ": too spicy"),
        (answer(GOOD, "refusal", "nul \0"), Outcome.REFUSED, ": nul \ufffd"),
        (answer(GOOD, "max_tokens"), Outcome.TRUNCATED, "token limit"),
        (answer(GOOD, "model_context_window_exceeded"), Outcome.CONTEXT_EXCEEDED, "too long"),
        (answer(GOOD, "tool_use"), Outcome.ODD_STOP, "'tool_use'"),
        (answer(GOOD, "pause_turn"), Outcome.ODD_STOP, "'pause_turn'"),
        (answer(GOOD, "brand_new"), Outcome.ODD_STOP, "'brand_new'"),
        (answer(GOOD, None), Outcome.ODD_STOP, "None"),
        (answer(""), Outcome.UNPARSABLE, "no JSON object"),
        (answer("Sorry, no."), Outcome.UNPARSABLE, "no JSON object"),
        (answer("[1, 2]"), Outcome.UNPARSABLE, "no JSON object"),
        (answer('{"b": 1}'), Outcome.SCHEMA_MISMATCH, "its schema: a is missing"),
    ],
)
def test_nothing_is_believed_before_the_stop_reason_says_so(
    given_answer: ModelAnswer, outcome: Outcome, words: str
) -> None:
    result = judge_answer(given_answer, lambda output: None if "a" in output else "a is missing")
    assert result.outcome is outcome
    assert words in result.message
    assert result.output == ({"a": 1} if outcome is Outcome.SUCCEEDED else None)
    assert (result.model, result.request_id) == ("model-x", "req_1")
    assert (result.input_tokens, result.output_tokens) == (3, 5)
    assert result.stop_reason == given_answer.stop_reason


def test_without_a_schema_any_object_will_do() -> None:
    assert judge_answer(answer('{"b": 1}'), None).output == {"b": 1}


FENCED = 'Here:\n```json\n{"a": 1}\n```\nEnjoy {"this": "longer one, which is not the answer"}!'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GOOD, {"a": 1}),
        (f" \n{GOOD}\n ", {"a": 1}),
        (f"\ufeff{GOOD}", {"a": 1}),
        (f"Sure! {GOOD} Anything else?", {"a": 1}),
        (FENCED, {"a": 1}),
        (f"```\n{GOOD}\n```", {"a": 1}),
        (f"```JSON  \r\n{GOOD}\r\n```", {"a": 1}),
        (f"```json\nnot it\n```\n```json\n{GOOD}\n```", {"a": 1}),
        ('```json\n{"code": "```py```"}\n```', {"code": "```py```"}),
        ('{"a": {"b": {"c": [1, {"d": 2}]}}}', {"a": {"b": {"c": [1, {"d": 2}]}}}),
        ('As {"x": 1} shows: {"answer": "long"}, not {"y": 2}', {"answer": "long"}),
        ('use {braces} like {} so: {"a": 1}', {"a": 1}),
        ('[{"a": 1}, {"b": [1, 2]}]', {"b": [1, 2]}),
        ('{"a": 1, "b": {"c": 2}', {"c": 2}),
        ('{"a": NaN}', None),
        ('{"a": Infinity}', None),
        ('{"a": -Infinity}', None),
        ('{"a": 1e999}', None),
        ('{"a": 1e308}', {"a": 1e308}),
        ('{"a": ' + "9" * 5000 + "}", None),
        ('{"a": 18446744073709551616}', {"a": 2**64}),
        ('{"a\\u0000b": "c\\u0000d"}', {"a\ufffdb": "c\ufffdd"}),
        ('{"a": "\\ud83d"}', {"a": "?"}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        ('{"a": "raw \0 nul"}', None),
        ("{'a': 1}", None),
        ('{"a": 1,}', None),
        ("{}", None),
        ("[]", None),
        ("null", None),
        ("", None),
    ],
)
def test_the_object_in_an_answer(text: str, found: dict[str, Any] | None) -> None:
    assert extract_object(text) == found


@pytest.mark.parametrize(("depth", "accepted"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
def test_the_depth_is_bounded(depth: int, accepted: bool) -> None:
    text = '{"a":' + "[" * (depth - 1) + "1" + "]" * (depth - 1) + "}"
    assert (extract_object(text) is not None) is accepted


@pytest.mark.parametrize(
    "text",
    [
        "{" * 200_000,
        '{"a":' * 100_000,
        '{"a":' + "[" * 200_000,
        '{"' * 100_000,
        '{"' + "a{" * 100_000,
        "```" + "\n" * 100_000,
        "```\n" * 50_000 + "x",
        "``` " + " \n" * 50_000,
    ],
    ids=lambda text: text[:6] + "…",
)
def test_a_hostile_answer_is_cheap(text: str) -> None:
    started = time.process_time()
    assert extract_object(text) is None
    assert time.process_time() - started < 1.0


def is_storable(value: Any) -> bool:
    """Say whether jsonb can hold a value: the rules of PostgreSQL, written a second time."""
    match value:
        case str():
            return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
        case dict():
            return all(is_storable(k) and is_storable(v) for k, v in value.items())
        case list():
            return all(map(is_storable, value))
        case float():
            return math.isfinite(value)
        case _:
            return value is None or isinstance(value, bool | int)


any_text = st.text(st.characters(codec=None, exclude_categories=()) | st.just("\0"), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=12,
)
pieces = st.one_of(
    st.text(max_size=10),
    st.sampled_from(["{", "}", "```json\n", "```", '"', "[", "\\ud83d", "\\u0000", "NaN", "1e999"]),
    st.dictionaries(any_text, json_values, max_size=3).map(json.dumps),
)


@given(st.lists(pieces, max_size=8).map("".join))
def test_whatever_is_found_can_be_stored(text: str) -> None:
    found = extract_object(text)
    assert found is None or (found and is_storable(found))
    assert found is None or json.loads(json.dumps(found, allow_nan=False)) == found


finite = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("k"), inner, max_size=3),
    max_leaves=12,
)


@given(finite, st.sampled_from(["{}", "```json\n{}\n```", "Sure!\n{}\nDone.", " {} "]))
def test_a_clean_object_is_found_unchanged(value: Any, frame: str) -> None:
    wanted = {"answer": value}
    text = frame.replace("{}", json.dumps(wanted))
    assert extract_object(text) == wanted


def test_too_deep_a_value_is_refused() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH + 1):
        value = [value]
    with pytest.raises(ValueError, match="nested too deep"):
        storable(value)
