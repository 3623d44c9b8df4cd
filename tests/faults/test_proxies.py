"""The proxies of the tests do what their faults are named after."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from devchain.processes import LOOPBACK
from tests.fakes.postgres_wire import Statements
from tests.fakes.tcp_proxy import TcpProxy, start_tcp_proxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    """Before a server that says everything back."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(100):
                writer.write(data)
        writer.transport.abort()

    server = await asyncio.start_server(echo, LOOPBACK, 0)
    async with server, start_tcp_proxy(server.sockets[0].getsockname()[1]) as running:
        yield running


async def connect(proxy: TcpProxy) -> Streams:
    return await asyncio.open_connection(LOOPBACK, proxy.port)


async def echoes(streams: Streams, data: bytes = b"hello") -> bool:
    streams[1].write(data)
    return await streams[0].readexactly(len(data)) == data


async def test_a_cut_is_an_end_and_a_reset_an_error(proxy: TcpProxy) -> None:
    cut = await connect(proxy)
    assert await echoes(cut)
    proxy.cut()
    assert await cut[0].read() == b""
    reset = await connect(proxy)
    assert await echoes(reset)
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await reset[0].read()
    again = await connect(proxy)
    assert await echoes(again)
    for _, writer in (cut, reset, again):
        writer.transport.abort()


async def test_nobody_comes_through_until_it_is_restored(proxy: TcpProxy) -> None:
    proxy.refuse()
    _, refused = await connect(proxy)
    await proxy.refused(1)
    proxy.restore()
    streams = await connect(proxy)
    assert await echoes(streams)
    for writer in (refused, streams[1]):
        writer.transport.abort()


async def test_a_black_hole_swallows_all_and_takes_new_ones(proxy: TcpProxy) -> None:
    old = await connect(proxy)
    assert await echoes(old)
    proxy.black_hole()
    new = await connect(proxy)
    waiting = [asyncio.create_task(echoes(streams)) for streams in (old, new)]
    done, _ = await asyncio.wait(waiting, timeout=0.05)
    assert not done
    proxy.restore()
    assert await asyncio.gather(*waiting) == [True, True]
    for _, writer in (old, new):
        writer.transport.abort()


async def test_slow(proxy: TcpProxy) -> None:
    streams = await connect(proxy)
    proxy.slow(0.02)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await echoes(streams)
    assert loop.time() - began >= 0.04, "there and back"
    streams[1].transport.abort()


def message(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(part + b"\0" for part in parts)
    return kind + struct.pack("!i", 4 + len(body)) + body


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_statements_in_any_chunks(size: int) -> None:
    said = b"".join(
        [
            struct.pack("!ii", 8, 80877103),
            message(b"", b"\0\3\0\0user", b"me"),
            message(b"Q", b"BEGIN;"),
            message(b"P", b"one", b"SELECT 1"),
            message(b"P", b"", b"SELECT 2"),
            message(b"B", b"", b"one"),
            message(b"E", b""),
            message(b"S"),
            message(b"B", b"", b""),
            message(b"E", b""),
            message(b"Q", b"COMMIT;"),
        ]
    )
    statements = Statements()
    executed = [
        sql
        for start in range(0, len(said), size)
        for sql in statements.feed(said[start : start + size])
    ]
    assert executed == ["BEGIN;", "SELECT 1", "SELECT 2", "COMMIT;"]
