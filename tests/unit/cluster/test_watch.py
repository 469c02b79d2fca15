"""Watching a cluster: up or the reason why not, changes said once, Redis started again."""

import itertools

import pytest

from baleen.errors import BaleenError, CheckpointError, ConfigError, HeadLost
from cluster.head_calls import lost
from cluster.service import ServiceState
from cluster.watch import HEAD_LOST, Watch

TRACEBACK = """A replica failed to start with exception. Retrying 2 more time(s). Error:
Traceback (most recent call last):
  File "python/ray/_raylet.pyx", line 1, in ray._raylet.execute_task
  File "/srv/cluster/group.py", line 241, in __init__
    raise self._explain()
baleen.errors.{}
"""


class Enough(Exception):
    """The test has seen what it wanted."""


def watch(looks, *, redis=None):
    """A watch that sees one list of states a look, and what it says."""
    said, told = [], []
    looks = iter(looks)

    def states():
        try:
            return next(looks)
        except StopIteration:
            raise Enough from None

    times = iter(range(1000))
    made = Watch(states, say=said.append, tell=told.append, redis=redis, pause=lambda _: None, now=lambda: next(times))
    return made, said, told


def test_without_rays_head_nobody_asks_serve_and_all_is_said_once():
    said, notices, asked = [], [], []
    heads = iter([True, False, False, True, True])

    def head():
        try:
            return next(heads)
        except StopIteration:
            raise Enough from None

    made = Watch(
        lambda: asked.append(1) or [UP],
        say=said.append,
        tell=lambda states: None,
        head_answers=head,
        notice=notices.append,
        pause=lambda _: None,
    )
    with pytest.raises(Enough):
        made.forever()
    assert said == [HEAD_LOST, "Ray's head is back"] and notices == [HEAD_LOST, ""]
    assert len(asked) == 3


def starting(heads, states):
    """A watch of what starts, whose clock goes on by a second with each look at it."""
    times = itertools.count()
    made = Watch(
        states,
        say=lambda text: None,
        tell=lambda states: None,
        head_answers=lambda: next(heads),
        head_address="host:1",
        pause=lambda _: None,
        now=lambda: next(times),
    )
    made.until_up(100.0)


def test_a_head_that_stays_lost_while_the_cluster_starts_is_the_reason():
    with pytest.raises(HeadLost, match=r"^Ray's head at host:1 has given no answer for 30 s$"):
        starting(itertools.repeat(False), list)


def test_a_head_that_is_busy_for_a_while_is_waited_for():
    starting(itertools.chain([True, *[False] * 9], itertools.repeat(True)), iter([[state(0, 2)], [UP]]).__next__)


def test_a_head_that_vanishes_between_two_questions_ends_the_start_and_nothing_that_runs():
    def states():
        raise lost("host:1")

    with pytest.raises(HeadLost):
        starting(itertools.repeat(True), states)
    said = []

    def rest(_):
        raise Enough

    with pytest.raises(Enough):
        Watch(states, say=said.append, tell=said.append).forever(rest)
    assert said == [HEAD_LOST]


def state(running, wanted, word="UPDATING", message=""):
    return ServiceState("default.decode", word, running, wanted, message)


UP = state(2, 2, "HEALTHY")


def test_it_is_up_when_all_is():
    made, _, told = watch([[state(0, 2)], [state(1, 2)], [UP]])
    made.until_up(100.0)
    assert told == [[state(0, 2)], [state(1, 2)], [UP]]


@pytest.mark.parametrize("kind", [ConfigError, CheckpointError])
def test_what_no_further_try_can_mend_is_final(kind):
    made, _, _ = watch([[state(0, 2)], [state(0, 2, message=TRACEBACK.format(f"{kind.__name__}: rank 0: x is 3: no"))]])
    with pytest.raises(kind, match=r"default\.decode does not start: rank 0: x is 3: no"):
        made.until_up(100.0)


def test_what_may_pass_is_tried_until_serve_gives_up():
    message = TRACEBACK.format("EpochEnded: rank 1 was killed by SIGKILL")
    made, _, told = watch([[state(0, 2, message=message)], [state(0, 2, "DEPLOY_FAILED", message)]])
    with pytest.raises(BaleenError, match="does not start: EpochEnded: rank 1 was killed by SIGKILL") as caught:
        made.until_up(100.0)
    assert type(caught.value) is BaleenError and len(told) == 2


def test_the_wait_is_bounded():
    made, _, _ = watch([[state(1, 2)]] * 1000)
    with pytest.raises(BaleenError, match=r"default\.decode is not up in time: UPDATING"):
        made.until_up(10.0)


def test_a_change_is_said_once():
    lost = state(1, 2, "UNHEALTHY", "rank 1 was killed")
    made, said, _ = watch([[UP], [UP], [lost], [lost], [UP]])
    with pytest.raises(Enough):
        made.forever()
    assert said == ["default.decode: 1 of 2 up; rank 1 was killed", "default.decode: all 2 up again"]


def test_redis_is_started_again_and_a_failure_said_once():
    class Redis:
        answers = iter([False, True, BaleenError("no memory"), BaleenError("no memory"), True])

        def restart_if_ended(self):
            answer = next(self.answers)
            if isinstance(answer, BaleenError):
                raise answer
            return answer

    made, said, _ = watch([[UP]] * 4, redis=Redis())
    with pytest.raises(Enough):
        made.forever()
    again = "redis had ended; started again, empty: ranks announce their blocks anew"
    assert said == [again, "redis has ended and does not start again: no memory", again]
