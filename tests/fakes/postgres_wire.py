"""As much of PostgreSQL's wire protocol as tells which statement a client sends.

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from collections.abc import Iterator
from typing import Final

_ENCRYPTION_REQUESTS: Final = {(80877103).to_bytes(4), (80877104).to_bytes(4)}
"""SSLRequest and GSSENCRequest, which come before the start-up message."""


class Messages:
    """Cuts a stream into `(type, body)`; the type of a client's start-up messages is empty."""

    def __init__(self, *, begins_with_startup: bool) -> None:
        self._is_starting = begins_with_startup
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Take a chunk and return the messages that are whole now."""
        self._buffer += data
        while True:
            head = 0 if self._is_starting else 1
            if len(self._buffer) < head + 4:
                return
            end = head + int.from_bytes(self._buffer[head : head + 4])
            if len(self._buffer) < end:
                return
            kind, body = bytes(self._buffer[:head]), bytes(self._buffer[head + 4 : end])
            del self._buffer[:end]
            if self._is_starting:
                self._is_starting = body[:4] in _ENCRYPTION_REQUESTS
            yield kind, body


class Statements:
    """Knows the SQL of each statement that a client has the server execute, prepared ones too."""

    def __init__(self) -> None:
        self._messages = Messages(begins_with_startup=True)
        self._prepared: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}

    def feed(self, data: bytes) -> list[str]:
        """Take what the client sends and return what is executed by it."""
        executed: list[str] = []
        for kind, body in self._messages.feed(data):
            first, _, rest = body.partition(b"\0")
            match kind:
                case b"Q":
                    executed.append(first.decode())
                case b"P":
                    self._prepared[first] = rest.partition(b"\0")[0].decode()
                case b"B":
                    self._portals[first] = self._prepared[rest.partition(b"\0")[0]]
                case b"E":
                    executed.append(self._portals[first])
        return executed


def ends_answer(messages: Messages, data: bytes) -> bool:
    """Tell whether a chunk of the server's holds the end of its answer (ReadyForQuery)."""
    return b"Z" in [kind for kind, _ in messages.feed(data)]
