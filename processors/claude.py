"""Claude, behind the only door to the `anthropic` package. Believes nothing that it did not check.

`max_retries=0`: the SDK would sleep through a `retry-after` of an hour inside the call; retries are
rows in the database instead. Its parsing helpers are not used: they lose usage and stop_reason when
an answer is cut off (measured with anthropic 2.12).
"""

import asyncio
import json
from typing import Any, Final, Self

import anthropic
from anthropic.types import Message

from oncepaid.domain.generation import AttemptResult, ModelAnswer, Outcome, judge_answer
from processors.services import Service

MAX_RETRY_AFTER_S: Final = 3600.0
MODEL_CHECK_TIMEOUT_S: Final = 10.0

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
        self._client = anthropic.AsyncAnthropic(api_key=api_key, base_url=base_url, max_retries=0)

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
        except (anthropic.AnthropicError, json.JSONDecodeError, ValueError, TypeError):
            # A body that is not JSON comes as a bare JSONDecodeError.
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
    """Return the reply's facts, or None: the SDK passes an HTML page or `{}` on as a success."""
    if not isinstance(reply, Message) or not isinstance(reply.content, list):
        return None
    usage = reply.usage
    counts = (getattr(usage, "input_tokens", None), getattr(usage, "output_tokens", None))
    if not all(isinstance(count, int) for count in counts) or not isinstance(reply.model, str):
        return None
    # Thinking blocks may come first; the answer is in the text blocks, wherever they stand.
    texts = [block.text for block in reply.content if block.type == "text"]
    details = reply.stop_details
    return ModelAnswer(
        text="".join(text for text in texts if isinstance(text, str)),
        stop_reason=reply.stop_reason,
        explanation=details.explanation if details else None,
        model=reply.model,
        request_id=reply._request_id,
        input_tokens=_input_tokens(usage),
        output_tokens=usage.output_tokens,
    )


def _input_tokens(usage: anthropic.types.Usage) -> int:
    """All input, cached or not: `input_tokens` alone leaves out what the cache held."""
    cached = (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
    return usage.input_tokens + cached


def _of_status_error(exc: anthropic.APIStatusError, service: Service) -> AttemptResult:
    outcome = _BY_STATUS.get(exc.status_code, Outcome.SERVER_ERROR)
    if exc.status_code == 200:
        outcome = Outcome.UNREADABLE
    return AttemptResult(
        outcome=outcome,
        message=f"{_MESSAGES[outcome]} (HTTP {exc.status_code})",
        model=service.model,
        request_id=exc.request_id,
        retry_after_s=_retry_after_s(exc.response.headers.get("retry-after")),
    )


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
