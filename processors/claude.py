"""Claude, behind the only door to the `anthropic` package. Believes nothing that it did not check.

`max_retries=0`: the SDK would sleep through a `retry-after` of an hour inside the call; retries are
rows in the database instead. Its parsing helpers are not used: they lose usage and stop_reason when
an answer is cut off (measured with anthropic 2.12).
"""

import asyncio
import json
import re
from typing import Any, Final, Self

import anthropic
from anthropic.types import Message

from oncepaid.domain.generation import AttemptResult, ModelAnswer, Outcome, judge_answer
from oncepaid.domain.text import storable_text
from processors.services import Service

MAX_RETRY_AFTER_S: Final = 3600.0
API_URL: Final = "https://api.anthropic.com"
MODEL_CHECK_TIMEOUT_S: Final = 10.0
MAX_TOKENS_TOLD: Final = 10**8
"""A larger count is none; the database's columns end at 2^31."""

_BY_STATUS: Final = {
    400: Outcome.REQUEST_REJECTED,
    401: Outcome.NOT_AUTHORIZED,
    402: Outcome.NOT_AUTHORIZED,
    403: Outcome.NOT_AUTHORIZED,
    # A model that is unknown or retired: the operator's to mend, so the job waits.
    404: Outcome.NOT_AUTHORIZED,
    408: Outcome.TIMED_OUT,
    409: Outcome.SERVER_ERROR,
    413: Outcome.REQUEST_REJECTED,
    422: Outcome.REQUEST_REJECTED,
    429: Outcome.RATE_LIMITED,
    529: Outcome.OVERLOADED,
}
# What is wrong with the account comes as HTTP 400 too: newer causes by code, an empty balance and
# a monthly limit by their words alone. No job may fail for it.
_ACCOUNT_CODES: Final = frozenset(
    {
        "cmek_key_disabled",
        "cmek_key_network_blocked",
        "organization_on_hold",
        "organization_type_not_supported",
        "parent_organization_required",
    }
)
_ACCOUNT_TEXT: Final = re.compile(r"credit balance|usage limits", re.IGNORECASE)
_MESSAGES: Final = {
    Outcome.REQUEST_REJECTED: "the request was rejected",
    Outcome.NOT_AUTHORIZED: "the service is not available at the moment",
    Outcome.TIMED_OUT: "the answer took too long",
    Outcome.RATE_LIMITED: "the service is busy",
    Outcome.OVERLOADED: "the service is overloaded",
    Outcome.SERVER_ERROR: "the service had an error",
    Outcome.NO_CONNECTION: "the service could not be reached",
    Outcome.UNREADABLE: "the answer was not readable",
}


class Claude:
    """Does one call at a time for each caller; safe to share."""

    def __init__(self, *, api_key: str, base_url: str | None) -> None:
        # The address in full: the SDK would take ANTHROPIC_BASE_URL from the environment.
        self._client = anthropic.AsyncAnthropic(
            api_key=api_key, base_url=base_url or API_URL, max_retries=0
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def generate(self, service: Service, prompt: str) -> AttemptResult:
        """Ask for one result. Never raises but for cancellation: every end is an outcome."""
        try:
            async with asyncio.timeout(service.timeout_s):
                reply = await self._client.messages.create(
                    **_request_of(service, prompt), timeout=service.timeout_s
                )
        except (TimeoutError, anthropic.APITimeoutError):
            return _ended(Outcome.TIMED_OUT, service, f"no answer within {service.timeout_s:g} s")
        except anthropic.APIConnectionError:
            return _ended(Outcome.NO_CONNECTION, service)
        except anthropic.APIStatusError as exc:
            return _of_status_error(exc, service)
        except (anthropic.AnthropicError, ValueError, TypeError, RecursionError):
            # A body that is not JSON comes as a bare JSONDecodeError, a `ValueError`.
            return _ended(Outcome.UNREADABLE, service)
        answer = _answer_of(reply)
        if answer is None:
            return _ended(Outcome.UNREADABLE, service)
        return judge_answer(answer, service.problem_of)

    async def problem_of_model(self, model: str) -> str | None:
        """Ask the API about a model; returns what is wrong with it or the key, or None."""
        try:
            async with asyncio.timeout(MODEL_CHECK_TIMEOUT_S):
                info = await self._client.models.retrieve(model)
        except (TimeoutError, anthropic.APIConnectionError):
            return "could not be reached"
        except anthropic.APIStatusError as exc:
            # A gateway that does not know this call may still serve messages.
            return None if exc.status_code in (405, 501) else f"HTTP {exc.status_code}"
        except (anthropic.AnthropicError, json.JSONDecodeError, ValueError):
            return "the answer was not readable"
        lifecycle = getattr(info, "lifecycle", None)
        return f"is {lifecycle}" if lifecycle in ("deprecated", "retired") else None


def _request_of(service: Service, prompt: str) -> dict[str, Any]:
    config: dict[str, Any] = {"effort": service.effort}
    if service.output_schema is not None:
        config["format"] = {"type": "json_schema", "schema": service.output_schema}
    request: dict[str, Any] = {
        "model": service.model,
        "max_tokens": service.max_tokens,
        "system": service.system_prompt,
        "messages": [{"role": "user", "content": prompt}],
        "output_config": config,
    }
    if service.thinking != "model_default":
        request["thinking"] = {"type": service.thinking}
    return request


def _answer_of(reply: object) -> ModelAnswer | None:
    """Return the reply's facts, or None: the SDK passes an HTML page or `{}` on as a success.

    It checks no type inside a reply either: whatever stood in the JSON stands in the fields.
    """
    if not isinstance(reply, Message) or not isinstance(reply.content, list):
        return None
    tokens, model = _tokens_of(reply.usage), _text_of(reply.model)
    if tokens is None or model is None:
        return None
    # Thinking blocks may come first; the answer is in the text blocks, wherever they stand.
    texts = [
        getattr(block, "text", None)
        for block in reply.content
        if getattr(block, "type", None) == "text"
    ]
    return ModelAnswer(
        text="".join(text for text in texts if isinstance(text, str)),
        stop_reason=_text_of(reply.stop_reason),
        explanation=_text_of(getattr(reply.stop_details, "explanation", None)),
        model=model,
        request_id=reply._request_id,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
    )


def _text_of(value: object) -> str | None:
    return storable_text(value) if isinstance(value, str) else None


def _tokens_of(usage: object) -> tuple[int, int] | None:
    """Return the input, cached or not, and the output; None where one of them is no count.

    `input_tokens` alone leaves out what the cache held.
    """
    fields = ("input_tokens", "output_tokens")
    cached = ("cache_creation_input_tokens", "cache_read_input_tokens")
    counts: list[Any] = [getattr(usage, name, None) for name in fields]
    counts += [getattr(usage, name, None) or 0 for name in cached]
    if not all(isinstance(count, int) and 0 <= count <= MAX_TOKENS_TOLD for count in counts):
        return None
    told, output, created, read = counts
    return told + created + read, output


def _of_status_error(exc: anthropic.APIStatusError, service: Service) -> AttemptResult:
    outcome = _BY_STATUS.get(exc.status_code, Outcome.SERVER_ERROR)
    if exc.status_code == 200:
        outcome = Outcome.UNREADABLE
    elif exc.status_code == 400 and _is_about_account(exc):
        outcome = Outcome.NOT_AUTHORIZED
    return AttemptResult(
        outcome=outcome,
        message=f"{_MESSAGES[outcome]} (HTTP {exc.status_code})",
        model=service.model,
        request_id=exc.request_id,
        retry_after_s=_retry_after_s(exc.response.headers.get("retry-after")),
    )


def _is_about_account(exc: anthropic.APIStatusError) -> bool:
    return exc.error_code in _ACCOUNT_CODES or bool(_ACCOUNT_TEXT.search(str(exc.api_message)))


def _retry_after_s(header: str | None) -> float | None:
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if seconds == seconds else None


def _ended(outcome: Outcome, service: Service, message: str | None = None) -> AttemptResult:
    return AttemptResult(
        outcome=outcome, message=message or _MESSAGES[outcome], model=service.model
    )
