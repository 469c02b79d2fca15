"""What keeps repeats in bounds: the retry budget, the quarantine, the records."""

import pytest

from baleen.errors import UnknownName
from baleen.ids import RequestId
from router.quarantine import Quarantine, request_digest
from router.record import MOST_MILESTONES, Records
from router.retry import RetryBudget
from tests.support.clock import ManualClock


def test_retries_are_a_share_of_requests():
    budget = RetryBudget(share=0.25, reserve=2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(3):
        budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend() and not budget.spend()


def test_retries_are_not_hoarded():
    budget = RetryBudget(share=1.0, reserve=3)
    for _ in range(100):
        budget.earn()
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]


def test_quarantine_ends():
    clock = ManualClock()
    quarantine = Quarantine(clock, seconds=10.0)
    bad, good = request_digest([1, 2, 3]), request_digest([1, 2, 4])
    quarantine.add(bad)
    clock.advance(4.0)
    assert quarantine.remaining_s(bad) == 6.0
    assert quarantine.remaining_s(good) == 0.0
    clock.advance(6.0)
    assert quarantine.remaining_s(bad) == 0.0


def test_quarantine_is_bounded():
    quarantine = Quarantine(ManualClock(), seconds=10.0, most=2)
    digests = [request_digest([number]) for number in range(3)]
    for digest in digests:
        quarantine.add(digest)
    assert [quarantine.remaining_s(digest) > 0 for digest in digests] == [False, True, True]


def test_digests_tell_prompts_apart():
    assert request_digest([1, 2]) == request_digest((1, 2))
    assert len({request_digest(tokens) for tokens in ([1, 2], [2, 1], [1], [1, 2, 0])}) == 4


def test_records_are_bounded():
    records = Records(capacity=2)
    for name in "abc":
        records.open(RequestId(name), 1, 0.0)
    with pytest.raises(UnknownName, match="'a'"):
        records.get(RequestId("a"))
    assert records.get(RequestId("c")).request_id == "c"


def test_a_record_keeps_its_first_end_and_few_milestones():
    record = Records().open(RequestId("a"), 5, 100.0)
    for _ in range(10 * MOST_MILESTONES):
        record.happened("again", 101.0)
    record.token(0, 1, 102.0)
    record.token(0, 3, 103.0)
    record.end("finished", "OK", 104.0)
    record.end("cancelled", "CANCELLED", 105.0)
    assert (record.outcome, record.first_token_s, record.usage.completion) == ("finished", 2.0, 4)
    assert len(record.milestones) == MOST_MILESTONES + 1
    assert record.milestones[-1] == (4.0, "end: finished")
