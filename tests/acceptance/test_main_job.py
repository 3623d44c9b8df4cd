"""The main job: money arrives, work is done, nobody lifts a finger."""

import json

from oncepaid.domain.memo import NONCE_BYTES
from tests.acceptance.conftest import World


async def test_each_way_of_paying_ends_in_a_finished_job(world: World) -> None:
    await world.first_start_done()
    by_memo = await world.insert_job("brainstorm")
    by_nonce = await world.insert_job("write")
    by_amount = await world.insert_job("summarize", {"input": "a long text"})
    payer, plain_wallet = world.stack.payers[0], world.stack.payers[1]
    async with world.daemon() as daemon:
        await daemon.wait_for("subscription.up")
        txs = {by_memo.id: await world.pay(by_memo)}
        signed = payer.sign_authorization(
            world.stack.merchant, by_nonce.price_units, by_nonce.envelope.ljust(NONCE_BYTES, b"\7")
        )
        txs[by_nonce.id] = await world.stack.relayer.submit_authorization(signed)
        txs[by_amount.id] = await plain_wallet.transfer(
            world.stack.merchant, by_amount.unique_amount_units
        )
        for job in (by_memo, by_nonce, by_amount):
            await daemon.wait_for("job.completed", job_uuid=job.uuid)
        metrics = await daemon.metrics()
        assert await daemon.get("/readyz") == (200, '{"ready": true, "reasons": {}}')

    sources = {by_memo.id: "calldata", by_nonce.id: "authorization", by_amount.id: None}
    for job in (by_memo, by_nonce, by_amount):
        row, payment = await world.job(job), await world.payment(txs[job.id])
        assert row["status"] == "completed"
        assert isinstance(json.loads(row["output_data"]), dict)
        assert row["created_at"] <= row["paid_at"] <= row["started_at"] <= row["completed_at"]
        assert row["attempts"] == 1
        assert (payment["status"], payment["job_id"]) == ("credited", job.id)
        assert payment["memo_source"] == sources[job.id]
        assert payment["seen_at"] <= payment["matched_at"] <= payment["credited_at"]
    assert metrics['oncepaid_jobs{status="completed"}'] == 3
    assert metrics['oncepaid_payments_total{reason="",status="credited"}'] == 3
    assert metrics['oncepaid_paid_to_result_seconds_count{service="brainstorm"}'] == 1
    assert metrics["oncepaid_subscription_up"] == 1


async def test_the_host_hub_finds_the_result_and_the_events_it_knows(world: World) -> None:
    await world.first_start_done()
    job = await world.insert_job("concept", {"prompt": "ein Café am See ☕"})
    async with world.daemon() as daemon:
        await world.pay(job)
        started = await daemon.wait_for("ai_processing_start", job_uuid=job.uuid)
        done = await daemon.wait_for("ai_processing_complete", job_uuid=job.uuid)
    (request,) = await world.claude.requests()
    assert started["service_key"] == "concept"
    assert started["input_length"] > 0
    assert done["duration_ms"] >= 0
    assert done["output_size"] == len((await world.job(job))["output_data"])
    assert request.body["messages"] == [{"role": "user", "content": "ein Café am See ☕"}]
    assert request.body["system"].startswith("Service: concept")
    assert request.body["max_tokens"] == 2000


async def test_money_that_matches_nothing_is_kept_with_its_reason(world: World) -> None:
    await world.first_start_done()
    job = await world.insert_job()
    stranger = await world.stack.payers[0].transfer(world.stack.merchant, 123_456)
    unknown = await world.stack.payers[0].transfer(
        world.stack.merchant, job.unique_amount_units, bytes.fromhex(UNKNOWN_ENVELOPE)
    )
    short = await world.pay(job, units=1)
    async with world.daemon() as daemon:
        await daemon.wait_for("payment.unmatched", count=3)
        metrics = await daemon.metrics()
    reasons = {tx: (await world.payment(tx))["reason"] for tx in (stranger, unknown, short)}
    assert reasons == {stranger: "no_memo", unknown: "unknown_memo", short: "underpaid"}
    assert (await world.job(job))["status"] == "pending"
    assert metrics['oncepaid_unmatched_usdc{reason="no_memo"}'] == 0.123456


async def test_the_second_payment_of_a_job_is_a_duplicate(world: World) -> None:
    await world.first_start_done()
    job = await world.insert_job()
    first, second = await world.pay(job), await world.pay(job)
    async with world.daemon() as daemon:
        await daemon.wait_for("job.completed", job_uuid=job.uuid)
        await daemon.wait_for("payment.unmatched", reason="duplicate")
    assert (await world.payment(first))["status"] == "credited"
    assert (await world.payment(second))["reason"] == "duplicate"
    assert len(await world.claude.requests()) == 1


async def test_two_jobs_paid_in_one_block_are_both_done(world: World) -> None:
    await world.first_start_done()
    jobs = [await world.insert_job() for _ in range(2)]
    await world.stack.rpc.call("evm_setAutomine", False)
    for job in jobs:
        await world.pay(job)
    await world.stack.rpc.call("evm_mine")
    async with world.daemon() as daemon:
        for job in jobs:
            await daemon.wait_for("job.completed", job_uuid=job.uuid)


UNKNOWN_ENVELOPE = "5c2e113200112233445566778899aabbccddeeff9eab6a62"
"""The example of the design: a well-formed memo that belongs to no job."""
