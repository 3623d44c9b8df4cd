"""What an audit read, and what follows from it: one line for each invariant."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from oncepaid.domain.auditing import (
    Balance,
    Check,
    CursorFacts,
    DoubledTransaction,
    Invariant,
    RangeFacts,
    Violation,
    judge_balance,
    judge_cursor,
    judge_doubled,
    judge_range,
)
from oncepaid.domain.money import format_usdc


@dataclass(slots=True, kw_only=True)
class Seen:
    """What was read of chain and tables. `balances` None: every address is ours."""

    cursor: CursorFacts
    ranges: list[RangeFacts] = field(default_factory=list)
    balances: list[Balance] | None = None
    doubled: Sequence[DoubledTransaction] = ()
    jobs: int = 0
    violations: list[Violation] = field(default_factory=list)

    @property
    def is_on_chain(self) -> bool:
        return self.cursor.found == self.cursor.cursor


def balance_violations(seen: Seen, first: int, last: int) -> list[Violation]:
    judged = [judge_balance(balance, first, last) for balance in seen.balances or ()]
    return [violation for violation in judged if violation is not None]


def violations_of(seen: Seen, first: int, last: int) -> list[Violation]:
    return [
        *(violation for facts in seen.ranges for violation in judge_range(facts)),
        *balance_violations(seen, first, last),
        *map(judge_doubled, seen.doubled),
        *seen.violations,
        *judge_cursor(seen.cursor),
    ]


def checks_of(seen: Seen, first: int, last: int) -> list[Check]:
    found = violations_of(seen, first, last)
    blocks = f"blocks {first} to {last}"
    why = None
    if not seen.is_on_chain:
        why = "the node's chain has another block where the cursor stands"
    elif first > last:
        why = "no block"
    units = sum(sum(facts.came.values()) for facts in seen.ranges)
    rows = f"{sum(facts.rows for facts in seen.ranges)} payments"
    texts = {
        Invariant.COMPLETENESS: f"{blocks}: {rows}",
        Invariant.SUMS: f"{blocks}: {format_usdc(units)} USDC came in",
        Invariant.CREDIT_ON_CHAIN: f"{blocks}: {sum(f.credited for f in seen.ranges)} credited",
        Invariant.DOUBLE_CREDIT: "all payments",
        Invariant.CREDIT_OF_JOB: f"{seen.jobs} jobs",
        Invariant.ONE_RESULT: f"{seen.jobs} jobs",
        Invariant.CURSOR: f"block {seen.cursor.cursor.number} and its checkpoints",
    }
    of_chain = (Invariant.COMPLETENESS, Invariant.SUMS, Invariant.CREDIT_ON_CHAIN)
    checks = [
        Check(
            invariant=invariant,
            checked=texts[invariant],
            violations=tuple(v for v in found if v.invariant is invariant),
            not_checked=why if invariant in of_chain else None,
        )
        for invariant in texts
    ]
    return [*checks, _balance_check(seen, first, last, why)]


def _balance_check(seen: Seen, first: int, last: int, why: str | None) -> Check:
    balances = seen.balances or []
    unknown = [b.address for b in balances if b.before is None or b.after is None]
    if why is None and seen.balances is None:
        why = "every recipient is observed, so that no address is ours"
    if why is None and unknown:
        why = f"the node does not know the balance of {', '.join(unknown)} at {first - 1} or {last}"
    return Check(
        invariant=Invariant.BALANCE,
        checked=f"blocks {first} to {last}: {len(balances) - len(unknown)} addresses",
        violations=tuple(balance_violations(seen, first, last)),
        not_checked=why,
    )


def confirmed(check: Check, suspected: set[tuple[Invariant, str]]) -> Check:
    return replace(check, violations=tuple(v for v in check.violations if v.key in suspected))
