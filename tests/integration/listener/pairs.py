"""A listener on the first of two endpoints, and a second look that asks the other one."""

from dataclasses import dataclass
from datetime import timedelta

from db.chain_state import ChainState
from db.ranges import RangeStore
from listener.rpc import HttpRpc
from listener.second_look import SecondLook
from tests.fakes.blocks import CHAIN_ID
from tests.integration.listener.rig import Ear

NOW = timedelta(0)


@dataclass(kw_only=True)
class Pair:
    """A listener on the first of two endpoints, and a second look that asks the other one."""

    ear: Ear
    rpc: HttpRpc
    store: RangeStore
    second_look: SecondLook
    repaired: list[None]

    async def look(self) -> None:
        """Look again until nothing is left to look at."""
        while await self.second_look.step():
            pass

    def second_look_of_store(self) -> SecondLook:
        """Return another second look, over `store` as it is now."""
        return SecondLook(
            self.rpc,
            self.store,
            lead=self.ear.lead,
            watch=self.ear.watch,
            metrics=self.ear.metrics,
            after=NOW,
        )

    async def state(self) -> ChainState:
        state = await self.store.state()
        assert state is not None
        return state


def second_look_of(ear: Ear, rpc: HttpRpc, repaired: list[None], after: timedelta) -> SecondLook:
    return SecondLook(
        rpc,
        RangeStore(ear.database, CHAIN_ID),
        lead=ear.lead,
        watch=ear.watch,
        metrics=ear.metrics,
        announce=lambda: repaired.append(None),
        after=after,
    )
