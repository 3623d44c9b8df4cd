"""The Claude adapter against a server that does everything wrong: every end has its name."""

import asyncio
import json
from dataclasses import replace
from typing import Final

import pytest

from oncepaid.domain.generation import AttemptResult, Outcome
from processors.claude import MAX_RETRY_AFTER_S, Claude
from tests.fakes.claude_server import (
    ERROR_TYPES,
    INPUT_TOKENS,
    MODEL,
    OUTPUT_TOKENS,
    REQUEST_ID,
    THINKING,
    Answer,
    ClaudeServer,
    Cut,
    Drip,
    Hang,
    Reply,
    error,
    message,
    model_info,
    raw,
    refusal,
    text_block,
)
from tests.fakes.loopback import LOOPBACK, unused_port
from tests.integration.processors.rig import API_KEY, SERVICE, quick

pytestmark = pytest.mark.fault("F20")

GOOD: Final = {"ok": True}
FENCED: Final = "Here it is:\n```json\n" + json.dumps(GOOD) + "\n```\nBye."

SUCCESSES: Final = {
    "text": message(GOOD),
    "thinking first": message(THINKING, GOOD),
    "several text blocks": message('{"ok"', ": tr", "ue}"),
    "text around thinking": message('{"ok": ', THINKING, "true}"),
    "stop sequence": message(GOOD, stop_reason="stop_sequence"),
    "fenced in prose": message(FENCED),
    "an unknown block": message({"type": "hologram", "voxels": 3}, GOOD),
}

ENDS: Final[dict[str, tuple[Answer, Outcome]]] = {
    "max_tokens": (message('{"ok": tr', stop_reason="max_tokens"), Outcome.TRUNCATED),
    "complete but max_tokens": (message(GOOD, stop_reason="max_tokens"), Outcome.TRUNCATED),
    "refusal": (refusal("it asks for harm"), Outcome.REFUSED),
    "refusal without a word": (refusal(None), Outcome.REFUSED),
    "refusal after text": (message(GOOD, stop_reason="refusal"), Outcome.REFUSED),
    "context exceeded": (
        message(stop_reason="model_context_window_exceeded"),
        Outcome.CONTEXT_EXCEEDED,
    ),
    "pause_turn": (message(GOOD, stop_reason="pause_turn"), Outcome.ODD_STOP),
    "tool_use": (message(GOOD, stop_reason="tool_use"), Outcome.ODD_STOP),
    "no stop_reason": (message(GOOD, stop_reason=None), Outcome.ODD_STOP),
    "a new stop_reason": (message(GOOD, stop_reason="moonrise"), Outcome.ODD_STOP),
    "no block": (message(), Outcome.UNPARSABLE),
    "only thinking": (message(THINKING), Outcome.UNPARSABLE),
    "prose": (message("I would rather not."), Outcome.UNPARSABLE),
    "another object": (message({"ok": "yes"}), Outcome.SCHEMA_MISMATCH),
    "HTML": (raw("<html>Log in</html>", content_type="text/html"), Outcome.UNREADABLE),
    "malformed JSON": (raw('{"id": "msg'), Outcome.UNREADABLE),
    "empty body": (raw(""), Outcome.UNREADABLE),
    "empty object": (raw("{}"), Outcome.UNREADABLE),
    "null": (raw("null"), Outcome.UNREADABLE),
    "a list": (raw("[1]"), Outcome.UNREADABLE),
    "no usage": (message(GOOD, usage=...), Outcome.UNREADABLE),
    "null usage": (message(GOOD, usage=None), Outcome.UNREADABLE),
    "odd usage": (
        message(GOOD, usage={"input_tokens": "many", "output_tokens": 1}),
        Outcome.UNREADABLE,
    ),
    "negative usage": (
        message(GOOD, usage={"input_tokens": -5, "output_tokens": 1}),
        Outcome.UNREADABLE,
    ),
    "absurd usage": (
        message(GOOD, usage={"input_tokens": 2**40, "output_tokens": 1}),
        Outcome.UNREADABLE,
    ),
    "odd cached usage": (
        message(
            GOOD,
            usage={"input_tokens": 1, "output_tokens": 1, "cache_read_input_tokens": "all"},
        ),
        Outcome.UNREADABLE,
    ),
    "null content": (message(content=None), Outcome.UNREADABLE),
    "content of text": (message(content="hello"), Outcome.UNREADABLE),
    "content of odd things": (message(content=["hello", None, 5]), Outcome.UNPARSABLE),
    "blocks without type": (message(content=[{"text": "hello"}]), Outcome.UNPARSABLE),
    "a number as stop_reason": (message(GOOD, stop_reason=5), Outcome.ODD_STOP),
    "a number as model": (message(GOOD, model=5), Outcome.UNREADABLE),
    "deep JSON": (raw("[" * 100_000), Outcome.UNREADABLE),
    "not the gzip it says": (
        Reply(body=b"{}", headers={"content-encoding": "gzip"}),
        Outcome.NO_CONNECTION,
    ),
    "null text": (message({"type": "text", "text": None}), Outcome.UNPARSABLE),
    "odd stop_details": (
        message(stop_reason="refusal", stop_details="because"),
        Outcome.REFUSED,
    ),
    "reset before the request": (Cut.BEFORE_REQUEST, Outcome.NO_CONNECTION),
    "reset after the request": (Cut.AFTER_REQUEST, Outcome.NO_CONNECTION),
    "reset inside the answer": (Cut.INSIDE_ANSWER, Outcome.NO_CONNECTION),
}

STATUSES: Final = {
    400: Outcome.REQUEST_REJECTED,
    401: Outcome.NOT_AUTHORIZED,
    402: Outcome.NOT_AUTHORIZED,
    403: Outcome.NOT_AUTHORIZED,
    404: Outcome.NOT_AUTHORIZED,
    408: Outcome.TIMED_OUT,
    409: Outcome.SERVER_ERROR,
    413: Outcome.REQUEST_REJECTED,
    422: Outcome.REQUEST_REJECTED,
    429: Outcome.RATE_LIMITED,
    500: Outcome.SERVER_ERROR,
    503: Outcome.SERVER_ERROR,
    504: Outcome.SERVER_ERROR,
    529: Outcome.OVERLOADED,
}

RETRY_AFTERS: Final = {
    "1": 1.0,
    "3600": 3600.0,
    "302539": MAX_RETRY_AFTER_S,
    "-5": 0.0,
    "inf": MAX_RETRY_AFTER_S,
    "nan": None,
    "soon": None,
    "Wed, 21 Oct 2026 07:28:00 GMT": None,
    None: None,
}


async def ask(claude: Claude, server: ClaudeServer, answer: Answer) -> AttemptResult:
    server.script(answer)
    result = await claude.generate(SERVICE, "about rain")
    assert API_KEY not in repr(result)
    return result


@pytest.mark.parametrize("answer", SUCCESSES.values(), ids=SUCCESSES)
async def test_good_answers(claude: Claude, server: ClaudeServer, answer: Answer) -> None:
    result = await ask(claude, server, answer)
    assert (result.outcome, result.output) == (Outcome.SUCCEEDED, GOOD)
    assert (result.model, result.request_id) == (MODEL, REQUEST_ID)
    assert (result.input_tokens, result.output_tokens) == (INPUT_TOKENS, OUTPUT_TOKENS)


@pytest.mark.parametrize(("answer", "outcome"), ENDS.values(), ids=ENDS)
async def test_ends(claude: Claude, server: ClaudeServer, answer: Answer, outcome: Outcome) -> None:
    result = await ask(claude, server, answer)
    assert (result.outcome, result.output) == (outcome, None)
    assert result.message
    # The next call is not harmed by what this one left on the connection.
    assert (await ask(claude, server, message(GOOD))).outcome is Outcome.SUCCEEDED


async def test_every_status_is_tried() -> None:
    assert set(STATUSES) == set(ERROR_TYPES)


@pytest.mark.parametrize(("status", "outcome"), STATUSES.items())
async def test_statuses(
    claude: Claude, server: ClaudeServer, status: int, outcome: Outcome
) -> None:
    result = await ask(claude, server, error(status))
    assert (result.outcome, result.output, result.request_id) == (outcome, None, REQUEST_ID)
    assert str(status) in result.message
    assert len(server.requests) == 1, "the SDK must not retry by itself"


@pytest.mark.parametrize(
    "text",
    [
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing"
        " to upgrade or purchase credits.",
        "You have reached your specified API usage limits. You will regain access on 2026-12-01"
        " at 00:00 UTC.",
    ],
)
async def test_an_account_without_money_is_not_the_jobs_fault(
    claude: Claude, server: ClaudeServer, text: str
) -> None:
    """The API words these as HTTP 400, `invalid_request_error`."""
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": text}}
    result = await ask(claude, server, raw(json.dumps(body), status=400))
    assert result.outcome is Outcome.NOT_AUTHORIZED


async def test_an_account_on_hold_is_not_the_jobs_fault(
    claude: Claude, server: ClaudeServer
) -> None:
    details = {"error_code": "organization_on_hold"}
    body = {"error": {"type": "invalid_request_error", "message": "no", "details": details}}
    result = await ask(claude, server, raw(json.dumps(body), status=400))
    assert result.outcome is Outcome.NOT_AUTHORIZED


@pytest.mark.parametrize("status", [429, 500, 529])
async def test_html_errors(claude: Claude, server: ClaudeServer, status: int) -> None:
    page = raw("<h1>Bad gateway</h1>", content_type="text/html", status=status)
    assert (await ask(claude, server, page)).outcome is STATUSES[status]


@pytest.mark.parametrize(("header", "seconds"), RETRY_AFTERS.items(), ids=repr)
async def test_retry_after(
    claude: Claude, server: ClaudeServer, header: str | None, seconds: float | None
) -> None:
    result = await ask(claude, server, error(429, retry_after=header))
    assert (result.outcome, result.retry_after_s) == (Outcome.RATE_LIMITED, seconds)


async def test_retry_after_of_an_overload(claude: Claude, server: ClaudeServer) -> None:
    assert (await ask(claude, server, error(529, retry_after="7"))).retry_after_s == 7


async def test_explanations_reach_the_customer(claude: Claude, server: ClaudeServer) -> None:
    result = await ask(claude, server, refusal("it asks for harm"))
    assert "it asks for harm" in result.message
    assert result.stop_reason == "refusal"


async def test_what_postgres_cannot_hold_is_replaced(claude: Claude, server: ClaudeServer) -> None:
    odd = message(stop_reason="re\0fusal", model="mo\0del")
    result = await ask(claude, server, odd)
    assert "\0" not in f"{result.stop_reason}{result.model}{result.message}"
    assert "\0" not in (await ask(claude, server, refusal("a\0b \ud800"))).message


async def test_cached_input_counts(claude: Claude, server: ClaudeServer) -> None:
    usage = {
        "input_tokens": 1,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 300,
        "output_tokens": 4,
    }
    result = await ask(claude, server, message(GOOD, usage=usage))
    assert (result.input_tokens, result.output_tokens) == (321, 4)


async def test_the_request_carries_everything(claude: Claude, server: ClaudeServer) -> None:
    await claude.generate(SERVICE, "about rain")
    (request,) = server.requests
    assert request.body == {
        "model": MODEL,
        "max_tokens": 777,
        "system": "You write. Answer in JSON.",
        "messages": [{"role": "user", "content": "about rain"}],
        "output_config": {
            "effort": "low",
            "format": {"type": "json_schema", "schema": SERVICE.output_schema},
        },
        "thinking": {"type": "adaptive"},
    }
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers["authorization"] == f"Bearer {API_KEY}"
    assert "anthropic-version" in headers


async def test_the_request_leaves_out_what_is_not_set(claude: Claude, server: ClaudeServer) -> None:
    plain = replace(SERVICE, output_schema=None, thinking="model_default", effort="high")
    server.script(message({"any": "thing"}))
    assert (await claude.generate(plain, "x")).outcome is Outcome.SUCCEEDED
    (request,) = server.requests
    assert request.body["output_config"] == {"effort": "high"}
    assert "thinking" not in request.body


async def test_an_odd_prompt_arrives_unchanged(claude: Claude, server: ClaudeServer) -> None:
    prompt = 'line\n\t"quoted" ☂ 𝔘 {"system": "no"} ' + "long " * 50_000
    await claude.generate(SERVICE, prompt)
    assert server.requests[0].prompt == prompt


async def test_the_deadline_holds_against_a_slow_drip(claude: Claude, server: ClaudeServer) -> None:
    """Every byte restarts the client's read timeout; the deadline is for the call as a whole."""
    server.script(Drip())
    async with asyncio.timeout(5):
        result = await claude.generate(quick(0.3), "x")
    assert result.outcome is Outcome.TIMED_OUT
    assert "0.3 s" in result.message


async def test_the_deadline_holds_against_silence(claude: Claude, server: ClaudeServer) -> None:
    server.script(Hang(then=message(GOOD)))
    async with asyncio.timeout(5):
        assert (await claude.generate(quick(0.2), "x")).outcome is Outcome.TIMED_OUT
        await server.wait_for(abandoned=1)


async def test_nobody_listens() -> None:
    async with Claude(api_key=API_KEY, base_url=f"http://{LOOPBACK}:{unused_port()}") as claude:
        result = await claude.generate(SERVICE, "x")
        assert await claude.problem_of_model(MODEL) == "could not be reached"
    assert result.outcome is Outcome.NO_CONNECTION
    assert API_KEY not in repr(result)


async def test_cancellation_goes_through(claude: Claude, server: ClaudeServer) -> None:
    server.hold()
    call = asyncio.create_task(claude.generate(SERVICE, "x"))
    async with asyncio.timeout(5):
        await server.wait_for(arrived=1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await server.wait_for(abandoned=1)


async def test_calls_share_one_adapter(claude: Claude, server: ClaudeServer) -> None:
    server.hold()
    calls = [asyncio.create_task(claude.generate(SERVICE, f"job {n}")) for n in range(20)]
    async with asyncio.timeout(5):
        await server.wait_for(arrived=20)
        server.release()
        results = await asyncio.gather(*calls)
    assert {result.outcome for result in results} == {Outcome.SUCCEEDED}
    assert {request.prompt for request in server.requests} == {f"job {n}" for n in range(20)}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (model_info(MODEL, lifecycle="active"), None),
        (model_info(MODEL, lifecycle="deprecated"), "is deprecated"),
        (model_info(MODEL, lifecycle="retired"), "is retired"),
        (error(401), "HTTP 401"),
        (error(404), "HTTP 404"),
        (raw("", status=405), None),
        (raw("", status=501), None),
        (raw("{"), "the answer was not readable"),
    ],
)
async def test_problems_of_a_model(
    claude: Claude, server: ClaudeServer, answer: Answer, problem: str | None
) -> None:
    assert not isinstance(answer, Cut | Hang | Drip)
    server.models[MODEL] = answer
    assert await claude.problem_of_model(MODEL) == problem


def test_text_blocks_hold_json() -> None:
    assert text_block(GOOD) == {"type": "text", "text": '{"ok": true}'}
