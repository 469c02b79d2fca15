"""Why a group ended: the rank that was the cause is named, not the ones that noticed. And that none is forgotten."""

import signal

import pytest

from baleen.errors import BaleenError, CheckpointError, ConfigError, EpochEnded
from cluster.local_group import _signals_deferred, end_of_group

NOTICED = "rank 1 closed its connection (its process ended)"


@pytest.mark.parametrize(
    ("exits", "causes", "kind", "message"),
    [
        ({0: 75, 1: -9}, {0: NOTICED}, EpochEnded, "epoch ended: rank 1 was killed by SIGKILL"),
        ({0: -11, 1: -9}, {}, EpochEnded, "epoch ended: rank 0 was killed by SIGSEGV, rank 1 was killed by SIGKILL"),
        ({0: 75, 1: 3}, {0: "rank 1 failed (load): x", 1: "x is missing"}, CheckpointError, "rank 1: x is missing"),
        ({0: 2, 1: 75}, {0: "engine.max_context is 9"}, ConfigError, "rank 0: engine.max_context is 9"),
        ({0: 75, 1: 70}, {1: "RuntimeError: no memory"}, BaleenError, "rank 1: RuntimeError: no memory"),
        ({0: 75, 1: 1}, {0: NOTICED}, BaleenError, "rank 1: last words of 1"),
        ({0: 75}, {0: "rank 1 silent for 3.0 s"}, EpochEnded, "epoch ended: rank 1 silent for 3.0 s"),
        ({0: 75, 1: 75}, {0: "rank 1 was suspended", 1: "rank 1 was suspended"}, EpochEnded, "rank 1 was suspended"),
        ({0: 0, 1: 0}, {0: "SIGTERM received"}, BaleenError, "left before its work was done: SIGTERM received"),
        ({}, {}, BaleenError, "no rank said why"),
    ],
)
def test_the_error_names_the_cause(exits, causes, kind, message):
    error = end_of_group(exits, causes, ["last words of 0", "last words of 1"])
    assert type(error) is kind and message in str(error)


def test_the_only_rank_needs_no_name():
    assert str(end_of_group({0: 3}, {0: "x is missing"}, [""])) == "x is missing"


def test_a_rank_that_said_nothing_is_named_with_its_code():
    assert str(end_of_group({0: 75, 1: 1}, {}, ["", ""])) == "rank 1: ended with code 1"


def test_an_interrupt_waits_until_what_was_started_is_noted():
    before = signal.getsignal(signal.SIGINT)
    noted = []
    with pytest.raises(KeyboardInterrupt), _signals_deferred():
        signal.raise_signal(signal.SIGINT)
        noted.append("started")
    assert noted == ["started"] and signal.getsignal(signal.SIGINT) is before


def test_an_error_is_not_hidden_by_an_interrupt_that_waited():
    with pytest.raises(OSError, match="no more processes"), _signals_deferred():
        signal.raise_signal(signal.SIGINT)
        raise OSError("no more processes")
