from tests.faults.test_crash_points import Crash, Theatre, play, theatre, zygote

__all__ = ["theatre", "zygote"]


async def test_one(theatre: Theatre, template: str) -> None:
    crashes = [Crash(point="JobStore.keep_leases:before", hit=h, by_signal=True) for h in (1, 2, 2, 2, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2)]
    await theatre.crash_at(play, crashes, template=template)
