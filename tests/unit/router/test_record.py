"""What a record tells the meters of the times between tokens."""

import pytest

from baleen.ids import RequestId
from router.record import Records


def ended(tokens, code="OK"):
    """The meters after one request whose tokens came so: (completion, how many, when)."""
    records = Records()
    record = records.open(RequestId("one"), 10, 0.0)
    record.num_attempts = 1
    for index, count, at in tokens:
        record.token(index, count, at)
    record.end("ended", code, 100.0)
    return records.meters


def test_the_time_for_a_token_is_the_mean_over_all_completions():
    meters = ended([(0, 1, 1.0), (1, 1, 2.0), (0, 2, 1.5), (1, 1, 4.0)])
    # two gaps of 0.25 s in the first, one of 2 s in the second
    assert sum(meters.token_mean.counts) == 1 and meters.token_mean.total == pytest.approx(2.5 / 3)
    assert sum(meters.token_gap.counts) == 3 and meters.token_gap.total == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("tokens", "code"), [([(0, 1, 1.0)], "OK"), ([], "OK"), ([(0, 1, 1.0), (0, 1, 2.0)], "CANCELLED")]
)
def test_requests_that_did_not_finish_or_have_one_token_are_left_out(tokens, code):
    assert sum(ended(tokens, code).token_mean.counts) == 0
