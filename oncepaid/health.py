"""Which parts of the daemon work: what `/readyz` answers."""

from collections.abc import Callable, Iterable, Mapping

STARTING = "starting"


class Health:
    """The parts that must work before the daemon is ready, and who is in trouble with which.

    Several stages use the database and the node; each reports and clears only its own trouble, so
    that an idle stage does not hide what another one runs into.
    """

    def __init__(self, parts: Iterable[str]) -> None:
        self._notes: dict[str, Callable[[], str | None]] = {}
        self._troubles: dict[tuple[str, str], str] = {(part, STARTING): STARTING for part in parts}

    def report(self, part: str, source: str, trouble: str | None) -> bool:
        """Note what `source` has to say of `part`, None for no trouble; True where that is news."""
        before = self._troubles.pop((part, source), None)
        if trouble is not None:
            self._troubles[part, source] = trouble
        return before != trouble

    def started(self, part: str) -> None:
        """Note that a part works for the first time."""
        self.report(part, STARTING, None)

    def clear(self, source: str, *, but: str | None = None) -> None:
        """Note that `source` went through without trouble, at least of parts other than `but`."""
        for key in [key for key in self._troubles if key[1] == source and key[0] != but]:
            del self._troubles[key]

    def add_note(self, name: str, read: Callable[[], str | None]) -> None:
        """Show what `read` returns as a note while it returns something."""
        self._notes[name] = read

    @property
    def notes(self) -> dict[str, str]:
        """What is odd without being in the way: a chain that stands still, a daemon on stand-by."""
        told = {name: read() for name, read in self._notes.items()}
        return {name: note for name, note in told.items() if note is not None}

    @property
    def troubles(self) -> Mapping[str, str]:
        """The parts in trouble and why, each a sentence without secrets."""
        return {part: why for (part, _), why in self._troubles.items()}
