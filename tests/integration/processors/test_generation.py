"""Paid jobs through generator and finisher: what each answer leaves in the tables and the logs."""

from decimal import Decimal
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from db.pool import Database
from oncepaid.domain.generation import FAILURE_ERROR
from oncepaid.domain.jobs import MAX_INPUT_BYTES, MAX_PROMPT_BYTES
from processors.claude import Claude
from tests.fakes.claude_server import (
    INPUT_TOKENS,
    MODEL,
    OUTPUT_TOKENS,
    REQUEST_ID,
    Answer,
    ClaudeServer,
    Cut,
    error,
    message,
    refusal,
)
from tests.integration.processors.rig import (
    API_KEY,
    COST,
    SERVICE,
    Limits,
    Rig,
    add_paid_job,
    add_paid_job_with,
    add_skill,
    attempt_rows,
    job_row,
    make_due,
    outcomes_of,
)

pytestmark = pytest.mark.fault("F20")

GOOD: Final = {"ok": True}
EVENTS: Final = ("ai_processing_start", "ai_processing_complete", "ai_processing_error")


def fields(logs: list[Any], event: str) -> dict[str, Any]:
    (only,) = [entry for entry in logs if entry["event"] == event]
    return dict(only)


async def test_a_good_answer(
    database: Database, rig: Rig, server: ClaudeServer, skill: int
) -> None:
    job = await add_paid_job(database, skill=skill, text="Write ☂.")
    with capture_logs() as logs:
        await rig.round()
    row = await job_row(database, job)
    assert (row.status, row.output, row.attempts) == ("completed", GOOD, 1)
    (attempt,) = await attempt_rows(database, job)
    assert (attempt["outcome"], attempt["stop_reason"]) == ("succeeded", "end_turn")
    assert (attempt["model"], attempt["request_id"]) == (MODEL, REQUEST_ID)
    assert (attempt["input_tokens"], attempt["output_tokens"]) == (INPUT_TOKENS, OUTPUT_TOKENS)
    assert attempt["cost_usd"] == COST
    assert server.requests[0].prompt == "Write ☂."
    assert server.requests[0].body["system"] == SERVICE.system_prompt
    uuids = {entry.get("job_uuid") for entry in logs if entry["event"] in EVENTS}
    assert len(uuids) == 1
    begun, done = fields(logs, "ai_processing_start"), fields(logs, "ai_processing_complete")
    assert begun["service_key"] == "write"
    assert begun["input_length"] == len('{"prompt": "Write ☂."}'.encode())
    assert 0 <= done["duration_ms"] < 10_000
    assert done["output_size"] == len('{"ok": true}')
    assert not [entry for entry in logs if entry["event"] == "ai_processing_error"]


async def test_metrics_of_a_good_answer(database: Database, rig: Rig, skill: int) -> None:
    await add_paid_job(database, skill=skill)
    await rig.round()
    value = rig.metrics.registry.get_sample_value
    by_outcome = {"model": MODEL, "outcome": "succeeded"}
    assert value("oncepaid_claude_requests_total", by_outcome) == 1
    tokens = {kind: {"model": MODEL, "kind": kind} for kind in ("input", "output")}
    assert value("oncepaid_claude_tokens_total", tokens["input"]) == INPUT_TOKENS
    assert value("oncepaid_claude_tokens_total", tokens["output"]) == OUTPUT_TOKENS
    assert value("oncepaid_claude_cost_usd_total", {"service": "write"}) == pytest.approx(0.00064)
    for stage in ("started", "generated", "finished"):
        assert value("oncepaid_stage_seconds_count", {"stage": stage}) == 1


@pytest.mark.parametrize(
    ("input_data", "prompt"),
    [
        ({"prompt": "a", "input": "b"}, "a"),
        ({"input": "b"}, "b"),
        ({"topic": "c"}, '{"topic": "c"}'),
        ("just text", "just text"),
        ({"prompt": "p" * MAX_PROMPT_BYTES}, "p" * MAX_PROMPT_BYTES),
    ],
    ids=["prompt", "input", "object", "text", "longest"],
)
async def test_inputs(
    database: Database,
    rig: Rig,
    server: ClaudeServer,
    skill: int,
    input_data: Any,
    prompt: str,
) -> None:
    job = await add_paid_job_with(database, skill, input_data)
    await rig.round()
    assert (await job_row(database, job)).status == "completed"
    assert server.requests[0].prompt == prompt


@pytest.mark.parametrize(
    ("input_data", "complaint"),
    [
        (None, "no input"),
        ({}, "no input"),
        ({"prompt": "   \n"}, "no input"),
        ({"prompt": "p" * (MAX_PROMPT_BYTES + 1)}, "bytes long"),
        ({"prompt": "p" * MAX_INPUT_BYTES}, "bytes long"),
    ],
    ids=["none", "empty object", "blank", "too long a prompt", "1 MB"],
)
async def test_bad_inputs_fail_without_a_call(
    database: Database,
    rig: Rig,
    server: ClaudeServer,
    skill: int,
    input_data: Any,
    complaint: str,
) -> None:
    job = await add_paid_job_with(database, skill, input_data)
    await rig.round()
    row = await job_row(database, job)
    assert row.status == "failed"
    assert complaint in row.output["message"]
    assert await outcomes_of(database, job) == ["bad_input"]
    assert server.requests == []


async def test_a_nul_in_the_input_never_reaches_the_wire(
    database: Database, rig: Rig, server: ClaudeServer, skill: int
) -> None:
    """jsonb refuses NUL; a hub that keeps JSON as json, as older ones do, may hold one."""
    async with database.connection() as connection:
        await connection.execute("ALTER TABLE jobs ALTER COLUMN input_data TYPE json")
        job = await connection.fetchval(
            """
            INSERT INTO jobs (skill_id, input_data, price_usdc, status, credited_units, paid_at)
            VALUES ($1, '{"prompt": "a\\u0000b \\ud800"}'::text::json, 0.5, 'paid', 500000, now())
            RETURNING id
            """,
            skill,
        )
    await rig.round()
    assert (await job_row(database, job)).status == "completed"
    assert server.requests[0].prompt == "a\ufffdb ?"


async def test_an_unknown_service(database: Database, rig: Rig, server: ClaudeServer) -> None:
    job = await add_paid_job(database, skill=await add_skill(database, key="juggle"))
    with capture_logs() as logs:
        await rig.round()
    row = await job_row(database, job)
    assert (row.status, row.output["error"]) == ("failed", FAILURE_ERROR)
    assert "juggle" in row.output["message"]
    assert await outcomes_of(database, job) == ["unknown_service"]
    assert server.requests == []
    told = fields(logs, "ai_processing_error")
    assert told["job_uuid"]
    assert "juggle" in told["error"]


async def test_a_key_is_derived_from_the_name(database: Database, rig: Rig) -> None:
    skill = await add_skill(database, key=None, name="W-r.i te!")
    job = await add_paid_job(database, skill=skill)
    await rig.round()
    assert (await job_row(database, job)).status == "completed"


@pytest.mark.parametrize("is_missing", [True, False], ids=["missing", "inactive"])
async def test_a_skill_that_is_not_on_offer(
    database: Database, rig: Rig, server: ClaudeServer, is_missing: bool
) -> None:
    skill = None if is_missing else await add_skill(database, is_active=False)
    job = await add_paid_job(database, skill=skill)
    await rig.round()
    assert (await job_row(database, job)).status == "failed"
    assert await outcomes_of(database, job) == ["inactive_skill"]
    assert server.requests == []


@pytest.mark.parametrize(
    ("answer", "outcome", "words"),
    [
        (refusal("it asks for harm"), "refused", "it asks for harm"),
        (refusal("a\0b"), "refused", "a\ufffdb"),
        (message(stop_reason="model_context_window_exceeded"), "context_exceeded", "too long"),
        (error(400), "request_rejected", "rejected"),
    ],
)
async def test_answers_that_will_not_change_fail_at_once(
    database: Database,
    rig: Rig,
    server: ClaudeServer,
    skill: int,
    answer: Answer,
    outcome: str,
    words: str,
) -> None:
    job = await add_paid_job(database, skill=skill)
    server.script(answer)
    with capture_logs() as logs:
        await rig.round()
    row = await job_row(database, job)
    assert (row.status, row.attempts) == ("failed", 1)
    assert row.output["error"] == FAILURE_ERROR
    assert words in row.output["message"]
    assert await outcomes_of(database, job) == [outcome]
    assert fields(logs, "ai_processing_error")["outcome"] == outcome
    assert API_KEY not in f"{row}{logs}"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (message('{"ok"', stop_reason="max_tokens"), "truncated"),
        (message({"ok": "perhaps"}), "schema_mismatch"),
        (message("no JSON here"), "unparsable"),
        (message({"ok": True}, stop_reason="pause_turn"), "odd_stop"),
    ],
)
async def test_bad_answers_use_up_the_attempts(
    database: Database, rig: Rig, server: ClaudeServer, skill: int, answer: Answer, outcome: str
) -> None:
    job = await add_paid_job(database, skill=skill)
    server.always(answer)
    for used in (1, 2):
        await rig.round()
        row = await job_row(database, job)
        assert (row.status, row.attempts, row.output) == ("paid", used, None)
        # 2 s · 2^(failures-1) · 0.5
        assert rig.made_wait(row, used)
        await make_due(database, job)
    await rig.round()
    row = await job_row(database, job)
    assert (row.status, row.attempts) == ("failed", 3)
    assert "after 3 attempts" in row.output["message"]
    assert await outcomes_of(database, job) == [outcome] * 3


async def test_a_better_answer_after_a_bad_one(
    database: Database, rig: Rig, server: ClaudeServer, skill: int
) -> None:
    job = await add_paid_job(database, skill=skill)
    server.script(message('{"ok', stop_reason="max_tokens"), message(GOOD))
    await rig.round()
    await make_due(database, job)
    await rig.round()
    assert (await job_row(database, job)).status == "completed"
    assert await outcomes_of(database, job) == ["truncated", "succeeded"]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (error(429), "rate_limited"),
        (error(529), "overloaded"),
        (error(500), "server_error"),
        (error(401), "not_authorized"),
        (Cut.AFTER_REQUEST, "no_connection"),
    ],
)
async def test_a_service_that_is_down_uses_up_nothing(
    database: Database, rig: Rig, server: ClaudeServer, skill: int, answer: Answer, outcome: str
) -> None:
    """More failures than `max_attempts`: the job waits, for longer each time, and is done."""
    job = await add_paid_job(database, skill=skill)
    for failures in range(1, 6):
        server.script(answer)
        await rig.round()
        row = await job_row(database, job)
        assert (row.status, row.attempts) == ("paid", 0)
        assert rig.made_wait(row, 2 ** (failures - 1))
        await make_due(database, job)
    await rig.round()
    row = await job_row(database, job)
    assert (row.status, row.output, row.attempts) == ("completed", GOOD, 1)
    assert await outcomes_of(database, job) == [outcome] * 5 + ["succeeded"]


@pytest.mark.parametrize(
    ("retry_after", "wait_s"), [("30", 31), ("3600", 3601), ("999999", 3601), ("nan", 1)]
)
async def test_retry_after_is_honoured(
    database: Database,
    rig: Rig,
    server: ClaudeServer,
    skill: int,
    retry_after: str,
    wait_s: float,
) -> None:
    job = await add_paid_job(database, skill=skill)
    server.script(error(429, retry_after=retry_after))
    await rig.round()
    assert rig.made_wait(await job_row(database, job), wait_s)
    await rig.generator.step()
    assert len(server.requests) == 1, "it must wait for its time"


async def test_the_daily_budget_stops_claims(
    database: Database, claude: Claude, server: ClaudeServer, skill: int
) -> None:
    rig = Rig(database, claude, limits=Limits(max_cost_usd_per_day=str(2 * COST), concurrency=1))
    jobs = [await add_paid_job(database, skill=skill) for _ in range(3)]
    with capture_logs() as logs:
        await rig.round()
        await rig.round()
        for _ in range(3):
            await rig.generator.step()
    assert [(await job_row(database, job)).status for job in jobs] == [
        "completed",
        "completed",
        "paid",
    ]
    assert len(server.requests) == 2
    told = fields(logs, "generation.daily_budget_spent")
    assert (told["log_level"], told["spent_usd"]) == ("error", pytest.approx(float(2 * COST)))
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE generation_attempts SET started_at = started_at - interval '1 day'"
        )
    await rig.round()
    assert (await job_row(database, jobs[2])).status == "completed"


async def test_the_cost_limit_of_a_job(
    database: Database, claude: Claude, server: ClaudeServer, skill: int
) -> None:
    limits = Limits(max_attempts=100, max_cost_usd_per_job=str(2 * COST))
    rig = Rig(database, claude, limits=limits)
    job = await add_paid_job(database, skill=skill)
    server.always(message("no JSON here"))
    await rig.round()
    assert (await job_row(database, job)).status == "paid"
    await make_due(database, job)
    await rig.round()
    row = await job_row(database, job)
    assert row.status == "failed"
    assert "cost limit" in row.output["message"]
    assert sum((a["cost_usd"] for a in await attempt_rows(database, job)), Decimal()) == 2 * COST


async def test_an_unpaid_job_is_left_alone(
    database: Database, rig: Rig, server: ClaudeServer, skill: int
) -> None:
    """A hub may set `paid` by itself, for jobs that it does by itself."""
    job = await add_paid_job(database, skill=skill)
    async with database.connection() as connection:
        await connection.execute("UPDATE jobs SET credited_units = 0")
    await rig.generator.step()
    assert (await job_row(database, job)).status == "paid"
    assert server.requests == []
