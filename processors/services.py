"""Services: what is sold, with the prompt that does it and the schema its answer must fit."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from decimal import Decimal
from importlib import resources
from typing import Any, Final, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

OTHER_SERVICE: Final = "other"
"""The metrics' label of every service that the configuration does not know."""

Thinking = Literal["model_default", "adaptive", "between_tools", "disabled"]
Effort = Literal["low", "medium", "high", "xhigh", "max"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """A service whose prompt and schema come with this package; None takes `claude.*`."""

    name: str
    max_tokens: int | None = None
    timeout_s: float | None = None
    thinking: Thinking | None = None
    effort: Effort | None = None


SHIPPED: Final = {
    "brainstorm": Shipped(name="Brainstorm"),
    "concept": Shipped(name="Creative Concept"),
    "write": Shipped(name="Write"),
    # A review has to think before it answers, and thinking spends max_tokens.
    "codereview": Shipped(
        name="Code Review", max_tokens=6000, timeout_s=90.0, thinking="adaptive", effort="medium"
    ),
    "summarize": Shipped(name="Summarize"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service, ready to use. `timeout_s` bounds one call as a whole."""

    key: str
    name: str
    price_usdc: Decimal | None
    system_prompt: str
    output_schema: dict[str, Any] | None
    model: str
    max_tokens: int
    timeout_s: float
    thinking: Thinking
    effort: Effort

    def problem_of(self, output: dict[str, Any]) -> str | None:
        """Return what is wrong with an output by the schema, or None."""
        if self.output_schema is None:
            return None
        validator = Draft202012Validator(self.output_schema)
        error = next(iter(validator.iter_errors(output)), None)
        if error is None:
            return None
        return f"{error.json_path}: {error.message}"[:300]


def label_of(service_key: str | None, known: Collection[str]) -> str:
    """Return a service's label: labels come from the configuration, never from data."""
    return service_key if service_key is not None and service_key in known else OTHER_SERVICE


def shipped_prompt(key: str) -> str:
    """Return the system prompt that comes with a shipped service."""
    return (resources.files("processors") / "catalogue" / f"{key}.md").read_text("utf-8")


def shipped_schema(key: str) -> dict[str, Any]:
    """Return the output schema that comes with a shipped service."""
    text = (resources.files("processors") / "catalogue" / f"{key}.schema.json").read_text("utf-8")
    return parse_schema(text)


def parse_schema(text: str) -> dict[str, Any]:
    """Return an output schema; raises `ValueError` unless it is a JSON schema for an object."""
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"is not JSON: {exc}") from exc
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise ValueError('must be a JSON schema of "type": "object"')
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as exc:
        raise ValueError(f"is not a valid JSON schema: {exc.message}") from exc
    for name in _references_of(schema):
        if not name.startswith("#"):
            raise ValueError(f"refers to {name!r}: a schema must stand alone")
    return schema


def _references_of(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            yield from _references_of(value)
    elif isinstance(node, list):
        for item in node:
            yield from _references_of(item)
