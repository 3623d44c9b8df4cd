"""Arguments that several commands take, checked; a bad one ends the command with one line."""

import re
from typing import Annotated, Final

import typer

from oncepaid.cli import EXIT_BAD_SETTING, fail
from oncepaid.domain.chain import TxHash

Why = Annotated[str, typer.Option(help="The reason, for the audit log.")]
NO_REASON: Final = "no reason given"

_TX_HASH: Final = re.compile(r"0x[0-9a-fA-F]{64}\Z")


def tx_hash_of(text: str, name: str) -> TxHash:
    """Return a transaction's hash as it is stored; `name` is what the argument is called."""
    if not _TX_HASH.match(text):
        fail(f"{name}: {text!r} is not a transaction's hash (0x and 64 digits)", EXIT_BAD_SETTING)
    return TxHash(text.lower())


def reason_of(why: str) -> str:
    """Return the reason that goes into the audit log."""
    if not why.strip():
        fail("--why: must say something", EXIT_BAD_SETTING)
    return why.strip()
