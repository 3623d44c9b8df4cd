"""What is sold is complete, and an answer is held against its schema."""

import json
from decimal import Decimal
from typing import Any, get_args

import pytest

from oncepaid import settings
from oncepaid.domain.jobs import service_key_of
from processors import services
from processors.services import (
    OTHER_SERVICE,
    SHIPPED,
    Service,
    label_of,
    parse_schema,
    shipped_prompt,
    shipped_schema,
)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"title": {"type": "string", "minLength": 2}, "n": {"enum": [1, 2]}},
    "required": ["title"],
    "additionalProperties": False,
}


def service(schema: dict[str, Any] | None) -> Service:
    return Service(
        key="write",
        name="Write",
        price_usdc=Decimal("0.50"),
        system_prompt="Write.",
        output_schema=schema,
        model="model-x",
        max_tokens=100,
        timeout_s=30,
        thinking="disabled",
        effort="low",
    )


@pytest.mark.parametrize("key", SHIPPED)
def test_a_shipped_service_is_complete(key: str) -> None:
    assert service_key_of(SHIPPED[key].name) in (key, "creativeconcept")
    assert len(shipped_prompt(key)) > 100
    schema = shipped_schema(key)
    assert parse_schema(json.dumps(schema)) == schema
    assert schema["required"]
    assert service(schema).problem_of({}) is not None


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ({"title": "ok"}, None),
        ({"title": "ok", "n": 2}, None),
        ({}, "$: 'title' is a required property"),
        ({"title": "x"}, "$.title: 'x' is too short"),
        ({"title": 5}, "$.title: 5 is not of type 'string'"),
        ({"title": "ok", "n": 3}, "$.n: 3 is not one of [1, 2]"),
        (
            {"title": "ok", "extra": 1},
            "$: Additional properties are not allowed ('extra' was unexpected)",
        ),
    ],
)
def test_outputs(output: dict[str, Any], problem: str | None) -> None:
    assert service(SCHEMA).problem_of(output) == problem
    assert service(None).problem_of(output) is None


def test_a_long_problem_is_cut() -> None:
    problem = service(SCHEMA).problem_of({"title": "ok", "n": "x" * 10_000})
    assert problem is not None
    assert len(problem) == 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", '"type": "object"'),
        ("5", '"type": "object"'),
        ("{}", '"type": "object"'),
        ('{"type": "array"}', '"type": "object"'),
        ('{"type": ["object"]}', '"type": "object"'),
        ('{"type": "object", "required": "title"}', "is not a valid JSON schema"),
        ('{"type": "object", "properties": {"a": {"type": "text"}}}', "is not a valid JSON schema"),
        ('{"type": "object", "properties": 5}', "is not a valid JSON schema"),
    ],
)
def test_what_is_no_schema_for_an_object_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_schema(text)


@pytest.mark.parametrize(
    ("key", "label"),
    [("write", "write"), ("unknown", OTHER_SERVICE), ("", OTHER_SERVICE), (None, OTHER_SERVICE)],
)
def test_labels_come_from_the_configuration(key: str | None, label: str) -> None:
    assert label_of(key, {"write"}) == label


def test_the_settings_offer_exactly_what_a_service_takes() -> None:
    assert get_args(settings.Thinking) == get_args(services.Thinking)
    assert get_args(settings.Effort) == get_args(services.Effort)
