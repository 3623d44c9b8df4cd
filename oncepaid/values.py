"""From settings to the values that stages take."""

from datetime import timedelta

from listener.ranges import Watch
from listener.references import ContractKind, ReferenceContract
from oncepaid.domain.chain import Address
from oncepaid.domain.finality import FinalityAges, Tier, by_age
from oncepaid.domain.generation import Budget
from oncepaid.domain.matching import MatchingRules
from oncepaid.domain.pricing import Price
from oncepaid.settings import Settings


def watch_of(settings: Settings) -> Watch:
    """Return what a listener looks for."""
    chain = settings.chain
    return Watch(
        token=Address(chain.token),
        recipients=chain.watched,
        start_block=chain.start_block,
        max_range_blocks=chain.max_range_blocks,
        contracts=tuple(
            ReferenceContract(
                kind=ContractKind(contract.kind),
                address=Address(contract.address),
                chain_id=chain.chain_id,
                operators=frozenset(Address(text) for text in contract.operators),
            )
            for contract in settings.matching.reference_contracts
        ),
    )


def rules_of(settings: Settings) -> MatchingRules:
    """Return what an operator set for matching."""
    return MatchingRules(
        recipients=settings.chain.watched,
        late_grace=timedelta(seconds=settings.matching.late_grace_s),
        amount_fallback=settings.matching.amount_fallback,
    )


def tiers_of(settings: Settings) -> list[Tier]:
    """Return the tiers of confirmation; by age on a chain whose nodes have no finality tags."""
    tiers = [tier.tier for tier in settings.confirmation.tiers]
    chain = settings.chain
    if chain.finality_tags:
        return tiers
    ages = FinalityAges(
        safe=timedelta(seconds=chain.safe_age_s),
        finalized=timedelta(seconds=chain.finalized_age_s),
    )
    return by_age(tiers, ages)


def budget_of(settings: Settings) -> Budget:
    """Return what one job may cost in calls and in dollars."""
    return Budget(
        max_attempts=settings.claude.max_attempts,
        max_cost_usd=settings.claude.max_cost_usd_per_job,
    )


def prices_of(settings: Settings) -> dict[str, Price]:
    """Return the prices of tokens by model."""
    return {
        model: Price(
            input_usd_per_mtok=price.input_usd_per_mtok,
            output_usd_per_mtok=price.output_usd_per_mtok,
        )
        for model, price in settings.claude.prices.items()
    }
