"""What customers, hosts and Claude may send: each ends by name, and nobody else waits for it."""

import json
from typing import Any

import pytest

from tests.acceptance.conftest import NewJob, World


async def _pay_all(world: World, jobs: list[NewJob]) -> None:
    for job in jobs:
        await world.pay(job)


async def _output(world: World, job: NewJob) -> dict[str, Any]:
    value = json.loads((await world.job(job))["output_data"])
    assert isinstance(value, dict)
    return value


async def test_odd_input_fails_by_name_and_stops_nobody(world: World) -> None:
    await world.first_start_done()
    huge = await world.insert_job(input_data={"prompt": "x" * 1_000_000})
    empty = await world.insert_job(input_data={"prompt": ""})
    emoji = await world.insert_job(input_data={"prompt": "🍞\u200d🔥 \ufffd naïve"})
    listed = await world.insert_job(input_data=["a", {"deep": ["list"]}])
    async with world.daemon() as daemon:
        await _pay_all(world, [huge, empty, emoji, listed])
        await daemon.wait_for("job.failed", job_uuid=huge.uuid)
        await daemon.wait_for("job.failed", job_uuid=empty.uuid)
        await daemon.wait_for("job.completed", job_uuid=emoji.uuid)
        await daemon.wait_for("job.completed", job_uuid=listed.uuid)
    failed = await _output(world, huge)
    assert failed["error"] == "AI generation failed"
    assert "1000000 bytes" in failed["message"]
    assert "no input" in (await _output(world, empty))["message"]
    assert (await world.job(huge))["completed_at"] is not None


async def test_a_skill_that_is_inactive_or_gone_fails_its_job_by_name(world: World) -> None:
    await world.first_start_done()
    inactive, gone, unknown = [await world.insert_job() for _ in range(3)]
    await world.sql.execute(
        """
        WITH other AS (INSERT INTO skills (name, is_active) VALUES ('Old', false), ('Tarot', true)
                       RETURNING id, name)
        UPDATE jobs SET skill_id = other.id FROM other
         WHERE other.name = CASE jobs.id WHEN $1 THEN 'Old' WHEN $2 THEN 'Tarot' END
        """,
        inactive.id,
        unknown.id,
    )
    await world.sql.execute("UPDATE jobs SET skill_id = NULL WHERE id = $1", gone.id)
    async with world.daemon() as daemon:
        await _pay_all(world, [inactive, gone, unknown])
        await daemon.wait_for("job.failed", count=3)
    assert "inactive" in (await _output(world, inactive))["message"]
    assert "gone" in (await _output(world, gone))["message"]
    assert "'tarot'" in (await _output(world, unknown))["message"]
    assert await world.claude.requests() == []


async def test_a_passing_error_of_claude_is_tried_again(world: World) -> None:
    await world.first_start_done()
    job = await world.insert_job()
    await world.claude.fail(529, service="brainstorm")
    async with world.daemon() as daemon:
        await world.pay(job)
        await daemon.wait_for("ai_processing_error", outcome="overloaded")
        await daemon.wait_for("job.completed", job_uuid=job.uuid)
    assert (await world.job(job))["attempts"] == 1


@pytest.mark.parametrize(
    ("content", "stop_reason", "words"),
    [
        ("I would rather not.", "end_turn", "no JSON object"),
        ('{"ideas": "none"}', "end_turn", "schema"),
        ('{"ideas": [', "max_tokens", "token limit"),
    ],
)
async def test_an_answer_that_stays_unusable_fails_the_job(
    world: World, content: str, stop_reason: str, words: str
) -> None:
    await world.first_start_done()
    job = await world.insert_job()
    await world.claude.answer(content, service="brainstorm", stop_reason=stop_reason, times=None)
    async with world.daemon(claude={"max_attempts": 2}) as daemon:
        await world.pay(job)
        failed = await daemon.wait_for("job.failed", job_uuid=job.uuid)
    output = await _output(world, job)
    assert output["error"] == "AI generation failed"
    assert words in output["message"]
    assert words in failed["message"]
    assert len(await world.claude.requests()) == 2


async def test_odd_transfers_are_stored_or_skipped_by_rule(world: World) -> None:
    await world.first_start_done()
    merchant, payer = world.stack.merchant, world.stack.payers[0]
    job = await world.insert_job()
    # Anybody may emit this one: it moves nothing and needs nobody's consent.
    await payer.transfer_from(world.stack.payers[1].address, merchant, 0, job.envelope)
    third_party = await _spend(world, job, units=job.price_units + 1)
    async with world.daemon() as daemon:
        await daemon.wait_for("payment.unmatched", reason="third_party_memo")
        await world.pay(job)
        await daemon.wait_for("job.completed", job_uuid=job.uuid)
    assert (await world.payment(third_party))["reason"] == "third_party_memo"
    assert await world.sql.fetchval("SELECT count(*) FROM payments") == 2


async def _spend(world: World, job: NewJob, *, units: int) -> str:
    """Let one wallet spend another's money by allowance, with a memo of its own choice."""
    owner, spender = world.stack.payers[1], world.stack.payers[0]
    await owner.approve(spender.address, units)
    return await spender.transfer_from(owner.address, world.stack.merchant, units, job.envelope)
