"""The process ends once, with one line and the right code, by whoever gets there first."""

from __future__ import annotations

from collections.abc import Callable

from workers.parallel.guard import EpochGuard


class Outside:
    """Stands for the process and its timers."""

    def __init__(self) -> None:
        self.codes: list[int] = []
        self.lines: list[str] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.guard = EpochGuard(
            name="rank 1",
            grace_s=0.7,
            exit_process=self.codes.append,
            write_line=self.lines.append,
            start_timer=lambda seconds, action: self.timers.append((seconds, action)),
        )


def test_a_stuck_main_thread_is_left_behind_after_the_grace() -> None:
    outside = Outside()
    outside.guard.epoch_ended("rank 2 silent for 3.0 s")
    assert outside.codes == [] and outside.lines == []
    ((seconds, action),) = outside.timers
    assert seconds == 0.7
    action()
    assert outside.codes == [75]
    assert outside.lines == [
        "rank 1: epoch ended: rank 2 silent for 3.0 s (the main thread did not come out in time)\n"
    ]


def test_a_main_thread_that_comes_out_leaves_by_itself() -> None:
    outside = Outside()
    outside.guard.epoch_ended("rank 2 left")
    outside.guard.leave("rank 2 left")
    assert outside.codes == [75]
    assert outside.lines == ["rank 1: epoch ended: rank 2 left\n"]
    outside.timers[0][1]()
    assert outside.codes == [75] and len(outside.lines) == 1


def test_one_timer_however_often_the_end_is_told() -> None:
    outside = Outside()
    outside.guard.epoch_ended("first")
    outside.guard.epoch_ended("second")
    assert len(outside.timers) == 1
    outside.timers[0][1]()
    assert "first" in outside.lines[0]
