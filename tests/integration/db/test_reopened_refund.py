"""A job that waits again, and money of it that went back."""

from dataclasses import replace

from db.payments import PaymentStore
from db.pool import Database
from db.reversals import ReversalStore
from oncepaid.domain.reversal import reverse
from tests.integration.db.credits import LIMIT, orphan
from tests.integration.db.desk_support import PRICE, send_back, sent
from tests.integration.db.support import CHAIN, add_job, header, match, observed, standing


async def test_money_that_went_back_is_not_matched_again(database: Database) -> None:
    job = await add_job(database)
    half = observed(PRICE // 2, job.memo)
    (kept,) = await match(database, half)
    (gone,) = await match(database, replace(observed(PRICE // 2, job.memo, block=header(2))))
    await PaymentStore(database, CHAIN).credit([kept, gone])
    await send_back(database, kept, replace(sent(PRICE // 2), block=header(2).ref), is_watched=True)
    assert await standing(database, [kept, gone]) == [("credited", None)] * 2
    await orphan(database, gone)
    await ReversalStore(database, CHAIN).reverse_orphaned(reverse, LIMIT)
    assert await standing(database, [kept]) == [("refunded", None)]
