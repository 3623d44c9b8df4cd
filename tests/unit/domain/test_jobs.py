"""The states of a job, the key of its service and the prompt in its input."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncepaid.domain.jobs import (
    LEGAL_MOVES,
    MAX_INPUT_BYTES,
    MAX_PROMPT_BYTES,
    JobStatus,
    Prompt,
    PromptRefused,
    prompt_of,
    service_key_of,
)

NO_INPUT = PromptRefused(message="the job has no input")
UNREADABLE = PromptRefused(message="the input is not readable JSON")


def test_every_state_says_where_it_may_go() -> None:
    assert set(LEGAL_MOVES) == set(JobStatus)
    assert LEGAL_MOVES[JobStatus.PENDING] == {JobStatus.PAID}
    # Only where its money left the chain.
    back = {status for status, targets in LEGAL_MOVES.items() if JobStatus.PENDING in targets}
    assert back == {JobStatus.PAID, JobStatus.IN_PROGRESS}


@pytest.mark.parametrize("status", ["completed", "failed", "delivered", "disputed", "refunded"])
def test_finished_jobs_are_left_alone(status: str) -> None:
    assert not LEGAL_MOVES[JobStatus(status)]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Creative Concept", "creativeconcept"),
        ("Code-Review 2.0", "codereview20"),
        ("  write ", "write"),
        ("a_b", "ab"),
        ("Übersetzen", "bersetzen"),
        ("İstanbul ①", "stanbul"),
        ("写", ""),
        ("", ""),
    ],
)
def test_service_keys(name: str, key: str) -> None:
    assert service_key_of(name) == key


@given(st.text())
def test_a_service_key_has_lower_case_letters_and_digits_only(name: str) -> None:
    key = service_key_of(name)
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789")
    assert service_key_of(key) == key


def read(value: Any) -> Prompt | PromptRefused:
    text = json.dumps(value)
    return prompt_of(text, len(text))


@pytest.mark.parametrize(
    ("value", "prompt"),
    [
        ({"prompt": "Hello"}, "Hello"),
        ({"input": "Hello"}, "Hello"),
        ({"prompt": "this", "input": "not this"}, "this"),
        ({"prompt": "", "input": "this"}, "this"),
        ({"prompt": None, "input": "this"}, "this"),
        ({"prompt": ["a", 1]}, '["a", 1]'),
        ({"prompt": {"a": 1}}, '{"a": 1}'),
        ({"prompt": 5}, "5"),
        ({"topic": "cats", "n": 2}, '{"topic": "cats", "n": 2}'),
        ({"prompt": "", "topic": "cats"}, '{"prompt": "", "topic": "cats"}'),
        ({"topic": "写 \U0001f600"}, '{"topic": "写 \U0001f600"}'),
        ({"topic": "lone \ud83d half"}, '{"topic": "lone ? half"}'),
        ({"topic": "nul \0 inside"}, '{"topic": "nul \\u0000 inside"}'),
        ("plain text", "plain text"),
        (["a", "b"], '["a", "b"]'),
        (7, "7"),
        (1.5, "1.5"),
        (True, "true"),
        ("nul \0 inside", "nul \ufffd inside"),
        ("lone \ud83d half", "lone ? half"),
        ("smile \U0001f600", "smile \U0001f600"),
        ("  kept as it is\n", "  kept as it is\n"),
    ],
    ids=repr,
)
def test_prompts(value: Any, prompt: str) -> None:
    assert read(value) == Prompt(text=prompt)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " \n\t",
        {},
        [],
        0,
        False,
        {"prompt": "  "},
        {"prompt": 0},
        {"prompt": "", "input": None},
        {"prompt": [], "input": {}, "topic": ""},
    ],
)
def test_nothing_to_do(value: Any) -> None:
    assert read(value) == NO_INPUT


@pytest.mark.parametrize(
    "text", ["{", "nope", '{"prompt": }', "9" * 5000, "[" * 100_000, "\ufeff1"]
)
def test_unreadable_input(text: str) -> None:
    assert prompt_of(text, len(text)) == UNREADABLE


def test_missing_input_is_told_from_input_that_was_too_long_to_read() -> None:
    assert prompt_of(None, 0) == NO_INPUT
    assert prompt_of("", 0) == NO_INPUT
    refused = prompt_of(None, MAX_INPUT_BYTES + 1)
    assert isinstance(refused, PromptRefused)
    assert refused.message.startswith(f"the input is {MAX_INPUT_BYTES + 1} bytes long")


@pytest.mark.parametrize(
    ("prompt", "accepted"),
    [
        ("x" * MAX_PROMPT_BYTES, True),
        ("x" * (MAX_PROMPT_BYTES + 1), False),
        ("x" * 1024 * 1024, False),
        ("\U0001f600" * (MAX_PROMPT_BYTES // 4), True),
        ("\U0001f600" * (MAX_PROMPT_BYTES // 4) + "x", False),
        ("\0" * (MAX_PROMPT_BYTES // 3), True),
        ("\0" * (MAX_PROMPT_BYTES // 3 + 1), False),
    ],
    ids=["fits", "one too many", "1 MB", "emoji fit", "emoji do not", "nul fits", "nul does not"],
)
def test_the_limit_counts_the_bytes_that_are_sent(prompt: str, accepted: bool) -> None:
    result = read({"prompt": prompt})
    if accepted:
        assert isinstance(result, Prompt)
        assert len(result.text.encode()) <= MAX_PROMPT_BYTES
    else:
        assert isinstance(result, PromptRefused)
        assert f"at most {MAX_PROMPT_BYTES}" in result.message


@pytest.mark.parametrize("opening", ["[", '{"prompt":', '{"a":'])
@pytest.mark.parametrize("depth", [*range(1, 1200, 23), *range(940, 1000), 50_000])
def test_any_depth_has_a_named_end(opening: str, depth: int) -> None:
    closing = "]" if opening == "[" else "}"
    text = opening * depth + "1" + closing * depth
    assert isinstance(prompt_of(text, len(text)), Prompt | PromptRefused)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_values | st.fixed_dictionaries({"prompt": json_values, "input": json_values}))
def test_any_json_gives_a_sendable_prompt_or_a_sentence(value: Any) -> None:
    result = read(value)
    if isinstance(result, Prompt):
        assert result.text.strip()
        assert "\0" not in result.text
        result.text.encode("utf-8")
    else:
        assert result == NO_INPUT
