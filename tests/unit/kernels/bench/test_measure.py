"""The measuring itself: floors, what is not timed, and what the table and the JSON say of it."""

import json

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

import torch

from kernels.bench import report
from kernels.bench.case import Case, Trial
from kernels.bench.measure import floor_us, measure
from kernels.registry import Operation


class FakeClock:
    """Takes the calls for as long as it is told, in order."""

    def __init__(self, *times):
        self._times = list(times)
        self.calls = 0

    def time_us(self, call):
        call()
        self.calls += 1
        return self._times.pop(0), "graph"


def case(check=lambda result: None, *, baseline=None, prepare=None, tiny=False):
    trial = Trial(run=lambda: 7, check=check, baseline=baseline, baseline_name="torch")
    made = prepare or (lambda device: trial)
    return Case(name="B1", moved_bytes=4_300_000, flops=7_900_000_000, precision="bf16", prepare=made, tiny=tiny)


def wrong(result):
    raise AssertionError(f"out: {result} is not 8")


def no_room(device):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_the_floor_is_the_larger_of_bytes_and_flops():
    assert floor_us(case()) == (pytest.approx(10.0), "flops")
    light = Case(name="", moved_bytes=4_300_000_000, prepare=no_room)
    assert floor_us(light) == (pytest.approx(1000.0), "bytes")


def test_a_right_case_is_timed_beside_its_baseline():
    result = measure("topk", case(baseline=lambda: 0), "cpu", FakeClock(20.0, 50.0))
    assert (result.time_us, result.baseline_us, result.baseline) == (20.0, 50.0, "torch")
    assert result.fraction == pytest.approx(0.5) and not result.wrong
    assert "50%" in report.line(result) and "floor by flops" in report.line(result)


def test_what_is_wrong_is_not_timed():
    clock = FakeClock()
    result = measure("topk", case(wrong), "cpu", clock)
    assert result.wrong and result.time_us is None and clock.calls == 0
    assert "wrong: out: 7 is not 8" in report.line(result)


def test_what_does_not_fit_is_said_and_is_no_error():
    result = measure("topk", case(prepare=no_room), "cpu", FakeClock())
    assert not result.wrong and "does not fit" in report.line(result)


def test_all_cases_but_the_tiny_ones_are_run(monkeypatch):
    operations = (Operation("one", "x:y", "x:y", "bench:cases"), Operation("two", "x:y", "x:y", "bench:cases"))
    monkeypatch.setattr(report, "OPERATIONS", operations)
    monkeypatch.setattr(report, "resolve", lambda name: lambda: [case(tiny=True), case()])
    results = list(report.run_all(["two"], "cpu", FakeClock(40.0)))
    assert [result.operation for result in results] == ["two"]
    said = json.loads(json.dumps(report.as_json(results, "H200")))
    assert said["device"] == "H200" and said["results"][0]["fraction"] == pytest.approx(0.25)


@pytest.mark.gpu
def test_a_clock_of_cuda_tells_a_long_call_from_a_short_one():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from kernels.bench.measure import CudaClock

    clock, small, large = CudaClock(), *(torch.zeros(n, device="cuda") for n in (2**10, 2**28))
    assert clock.time_us(lambda: large.add_(1))[0] > 10 * clock.time_us(lambda: small.add_(1))[0]
    assert clock.time_us(lambda: small.sum().item())[1] == "calls"
