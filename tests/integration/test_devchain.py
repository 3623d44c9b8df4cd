"""The dev chain behaves like Base where the daemon looks, and the stand-in like Claude."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from devchain import processes
from devchain.anvil import start_anvil
from devchain.claude import Claude, Fault, start_claude
from devchain.processes import DevToolError, free_port, node_file
from devchain.rpc import Rpc, RpcError
from devchain.stack import DEFAULT_FUNDS_UNITS, Stack, start_stack
from devchain.usdc import BASE_USDC, call_data
from devchain.wallet import Payment

TRANSFER = keccak(text="Transfer(address,address,uint256)").hex()
AUTHORIZATION_USED = keccak(text="AuthorizationUsed(address,bytes32)").hex()
# Recovered from real signatures on Base mainnet.
BASE_DOMAIN = "0x02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f"
ANSWER_KEYS = {
    "brainstorm": {"ideas"},
    "concept": {"title", "summary", "audience", "features", "next_steps"},
    "write": {"title", "body"},
    "codereview": {"summary", "findings"},
    "summarize": {"summary", "key_points"},
}


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[Stack]:
    async with start_stack() as running:
        yield running


@pytest_asyncio.fixture
async def claude() -> AsyncIterator[Claude]:
    async with start_claude() as running:
        yield running


async def ask(claude: Claude, service: str, **options: Any) -> anthropic.types.Message:
    async with AsyncAnthropic(base_url=claude.base_url, api_key="test", max_retries=0) as sdk:
        message: anthropic.types.Message = await sdk.messages.create(
            model="claude-opus-4-8",
            max_tokens=1000,
            system=f"You help.\nService: {service}\nAnswer in JSON.",
            messages=[{"role": "user", "content": "a bakery"}],
            **options,
        )
        return message


def text_of(message: anthropic.types.Message) -> str:
    block = message.content[0]
    assert block.type == "text"
    return block.text


async def test_token_is_the_real_one(stack: Stack) -> None:
    domain = await stack.usdc.read(call_data("DOMAIN_SEPARATOR()"))
    fields = ["bytes32", "bytes32", "bytes32", "uint256", "address"]
    kind = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
    hashes = (keccak(text=kind), keccak(text="USD Coin"), keccak(text="2"))
    local = keccak(encode(fields, [*hashes, 8453, BASE_USDC]))
    assert domain == "0x" + local.hex() == BASE_DOMAIN
    assert int(await stack.usdc.read(call_data("decimals()")), 16) == 6
    assert await stack.usdc.balance(stack.payers[0].address) == DEFAULT_FUNDS_UNITS


async def test_transfer_keeps_its_tail(stack: Stack) -> None:
    payer = stack.payers[0]
    tail = b"memo" * 2_500
    receipt = await stack.rpc.receipt(await payer.transfer(stack.merchant, 1_500_000, tail))
    (log,) = receipt["logs"]
    assert log["topics"][0] == "0x" + TRANSFER
    assert int(log["data"], 16) == 1_500_000
    sent = await stack.rpc.call("eth_getTransactionByHash", receipt["transactionHash"])
    plain = call_data("transfer(address,uint256)", stack.merchant, 1_500_000)
    assert sent["input"] == "0x" + (plain + tail).hex()
    assert await stack.usdc.balance(stack.merchant) == 1_500_000


async def test_transfer_from_an_owner_who_approved(stack: Stack) -> None:
    owner, spender = stack.payers[:2]
    await stack.rpc.receipt(await owner.approve(spender.address, 7))
    sent = await spender.transfer_from(owner.address, stack.merchant, 7, b"tail")
    await stack.rpc.receipt(sent)
    assert await stack.usdc.balance(stack.merchant) == 7


async def test_authorization_is_logged_before_its_transfer(stack: Stack) -> None:
    payer, nonce = stack.payers[0], bytes(range(32))
    signed = payer.sign_authorization(stack.merchant, 42, nonce)
    receipt = await stack.rpc.receipt(await stack.relayer.submit_authorization(signed))
    used, moved = receipt["logs"]
    assert used["topics"][0] == "0x" + AUTHORIZATION_USED
    assert used["topics"][2] == "0x" + nonce.hex()
    assert moved["topics"][0] == "0x" + TRANSFER
    assert int(moved["logIndex"], 16) == int(used["logIndex"], 16) + 1
    assert used["topics"][1] == moved["topics"][1]


async def test_concurrent_transfers_of_one_payer(stack: Stack) -> None:
    payer = stack.payers[0]
    hashes = await asyncio.gather(*(payer.transfer(stack.merchant, 1) for _ in range(20)))
    await asyncio.gather(*map(stack.rpc.receipt, hashes))
    assert await stack.usdc.balance(stack.merchant) == 20


async def test_send_many_spreads_payments_over_blocks(stack: Stack) -> None:
    before = int(await stack.rpc.call("eth_blockNumber"), 16)
    payments = [Payment(to=stack.merchant, units=i + 1, tail=b"%d" % i) for i in range(500)]
    hashes = await stack.payers[0].send_many(payments, per_block=50)
    window = {"fromBlock": hex(before + 1), "toBlock": "latest", "address": stack.usdc.address}
    logs = await stack.rpc.call("eth_getLogs", window)
    assert [int(log["data"], 16) for log in logs] == [one.units for one in payments]
    assert [log["transactionHash"] for log in logs] == hashes
    assert len({log["blockNumber"] for log in logs}) == 10
    assert all("blockTimestamp" in log for log in logs)
    assert await stack.rpc.call("anvil_getAutomine") is True


async def test_blocks_come_by_themselves_every_200_ms() -> None:
    async with start_stack(block_time_s=0.2) as stack:
        receipt = await stack.rpc.receipt(await stack.payers[0].transfer(stack.merchant, 5))
        assert len(receipt["logs"]) == 1


async def test_a_failed_transfer_is_told(stack: Stack) -> None:
    sent = await stack.payers[0].transfer(stack.merchant, DEFAULT_FUNDS_UNITS + 1)
    with pytest.raises(RpcError, match="reverted"):
        await stack.rpc.receipt(sent)


async def test_node_comes_back_on_its_port_with_its_past(tmp_path: Path) -> None:
    port, state = free_port(), tmp_path / "state.json"
    async with Rpc(f"http://127.0.0.1:{port}") as rpc:
        with pytest.raises(aiohttp.ClientError):
            await rpc.call("eth_blockNumber")
        async with start_anvil(port=port, state_file=state) as anvil:
            await rpc.call("anvil_mine", 7)
            await anvil.stop()
            with pytest.raises(aiohttp.ClientError):
                await rpc.call("eth_blockNumber")
        async with start_anvil(port=port, state_file=state):
            assert await rpc.call("eth_blockNumber") == "0x7"


async def test_nothing_is_left_after_an_exception() -> None:
    pids: list[int] = []

    async def use_and_fail() -> None:
        async with start_anvil() as anvil:
            pids.append(anvil.child.process.pid)
            raise KeyError

    with pytest.raises(KeyError):
        await use_and_fail()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_missing_node_modules_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "_NODE_MODULES", tmp_path)
    with pytest.raises(DevToolError, match="make install"):
        node_file("@copilotkit/aimock/dist/cli.js")


async def test_claude_answers_each_service(claude: Claude) -> None:
    style = {"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"}
    for service, keys in ANSWER_KEYS.items():
        message = await ask(claude, service, output_config=style, thinking={"type": "adaptive"})
        assert set(json.loads(text_of(message))) == keys
        assert message.stop_reason == "end_turn"
        assert message.usage.input_tokens > 0
        assert message.usage.output_tokens > 0
    (first, *others) = await claude.requests()
    assert len(others) == len(ANSWER_KEYS) - 1
    assert first.body["output_config"] == style
    assert len(await claude.requests("write")) == 1


async def test_claude_fails_as_scripted_then_recovers(claude: Claude) -> None:
    for status in (429, 529, 500):
        await claude.fail(status, service="write", retry_after_s=3)
    for status in (429, 529, 500):
        with pytest.raises(anthropic.APIStatusError) as caught:
            await ask(claude, "write")
        assert caught.value.status_code == status
    await claude.break_off(Fault.DISCONNECT, service="write")
    with pytest.raises(anthropic.APIConnectionError):
        await ask(claude, "write")
    await claude.answer("cannot", service="write", stop_reason="refusal")
    assert (await ask(claude, "write")).stop_reason == "refusal"
    assert (await ask(claude, "write")).stop_reason == "end_turn"
    assert [one.status for one in await claude.requests()] == [429, 529, 500, 0, 200, 200]


async def test_claude_holds_requests_until_released(claude: Claude) -> None:
    claude.hold()
    asking = asyncio.create_task(ask(claude, "write"))
    (held,) = await claude.wait_for_requests(1)
    assert held.status is None
    claude.release()
    assert text_of(await asking)
    assert (await claude.requests())[0].status == 200


async def test_claude_delays_are_bounded_and_reset(claude: Claude) -> None:
    await claude.delay(0.01, service="write")
    await claude.fail(500, service=None, times=None)
    assert text_of(await ask(claude, "write"))
    with pytest.raises(anthropic.InternalServerError):
        await ask(claude, "concept")
    await claude.reset()
    assert text_of(await ask(claude, "concept"))
    with pytest.raises(ValueError, match="aimock refused"):
        await claude.delay_all(31)
