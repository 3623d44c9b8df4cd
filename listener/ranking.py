"""The order of what is said of one transfer: the strongest first, nothing twice, never too much."""

from collections.abc import Iterable
from typing import Final

from oncepaid.domain.memo import Memo, Reference
from oncepaid.domain.payments import Evidence, Signer

MAX_PIECES: Final = 16
"""Of one transfer. Who writes more names more than one job, and that is told by two."""


def strongest(pieces: Iterable[Evidence]) -> tuple[Evidence, ...]:
    """Return what the payer signed before what others did, each memo and reference once.

    What is said in less company comes first; among equals the order stays.
    """
    best: dict[tuple[Memo | None, Reference | None], Evidence] = {}
    for piece in pieces:
        name = piece.memo, piece.reference
        known = best.get(name)
        if known is None or _weakness(piece) < _weakness(known):
            best[name] = piece
    return tuple(sorted(best.values(), key=_weakness)[:MAX_PIECES])


def _weakness(piece: Evidence) -> tuple[bool, int]:
    return piece.signer is not Signer.PAYER, piece.company
