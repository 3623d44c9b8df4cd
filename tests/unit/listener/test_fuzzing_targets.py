"""What the fuzzer runs by the million holds for what it begins with, and can be told from noise."""

import pytest

from tests.fuzzing.corpus import beginnings_of
from tests.fuzzing.receipts import EMITTERS, packed, unpacked
from tests.fuzzing.targets import TARGETS, without_one
from tests.unit.listener.calls import transfer_log
from tests.unit.listener.contract_logs import Logs
from tests.unit.samples import memo


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_target_holds_for_its_beginnings(target: str) -> None:
    beginnings = beginnings_of(target)
    assert len(beginnings) > 10
    for data in beginnings:
        TARGETS[target](data)


def test_each_transfer_is_left_out_by_some_number() -> None:
    transfers = [transfer_log(index) for index in range(3)]
    left = [[log.log_index for log in without_one(transfers, number)] for number in range(5)]
    assert left == [[1, 2], [0, 2], [0, 1], [0, 1, 2], [1, 2]]


def test_packed_events_are_unpacked_as_they_were() -> None:
    logs = Logs(first=0)
    logs.transfer(5)
    logs.transfer(10**30)
    logs.memo(memo(9) * 2)
    logs.request(b"12345678", 5, fee=1)
    for emitter in EMITTERS:
        logs.add(emitter, (), bytes(640))
    assert unpacked(packed(b"call", logs.events)) == (b"call", logs.receipt())
