"""A cluster of real processes in which one part dies while requests are in one phase; `benchmarks.fault_table` repeats
all classes and phases many times.
"""

import asyncio

import pytest

from tests.support.fault_calls import take_reference
from tests.support.fault_cluster import FaultCluster
from tests.support.fault_phases import PHASES
from tests.support.fault_trials import CLASSES, run_trial
from tests.support.tiny_checkpoint import make_tiny

pytestmark = pytest.mark.slow

TRIAL_S = 120.0

CELLS = [
    ("prefill rank SIGKILL", "prefilling"),
    ("prefill rank SIGKILL", "transferring"),
    ("prefill rank SIGSTOP", "transferring"),
    ("prefill rank connection cut", "prefilling"),
    ("transfer cut at byte n", "transferring"),
    ("transfer byte n corrupted", "transferring"),
    ("transfer held at byte n", "transferring"),
    ("decode rank SIGKILL", "queued"),
    ("decode rank SIGKILL", "transferring"),
    ("decode rank SIGKILL", "decoding"),
    ("decode rank SIGKILL", "draining"),
    ("decode rank SIGSTOP", "prefilling"),
    ("decode rank SIGSTOP", "decoding"),
    ("decode rank connection cut", "decoding"),
    ("decode group SIGKILL", "decoding"),
    ("router SIGKILL", "decoding"),
    ("router SIGTERM", "queued"),
    ("Redis SIGKILL", "transferring"),
    ("Redis SIGSTOP", "decoding"),
    ("Redis restarted empty", "queued"),
    ("prefill group SIGTERM", "prefilling"),
    ("decode group SIGTERM", "decoding"),
]


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """Runs a trial in a cluster that all tests here share: each of them leaves it whole."""
    directory = tmp_path_factory.mktemp("faults")
    cluster = FaultCluster(make_tiny(directory / "tiny"), directory)
    with asyncio.Runner() as runner:
        runner.run(cluster.__aenter__())
        try:
            reference = runner.run(take_reference(cluster))

            def run(name, phase, number=7):
                one = run_trial(cluster, reference, CLASSES[name], phase, number)
                return runner.run(asyncio.wait_for(one, TRIAL_S))

            yield run
        finally:
            runner.run(cluster.__aexit__())


@pytest.mark.parametrize(("name", "phase"), CELLS)
def test_every_request_ends_as_without_the_fault(trial, name, phase):
    result = trial(name, phase)
    assert (result.failed, result.differences, result.disturbed, result.leaked_blocks) == ([], [], [], 0)


@pytest.mark.parametrize("phase", PHASES)
def test_a_cancelled_request_frees_everything_and_no_deadline_has_to(trial, phase):
    # how soon it is: benchmarks.fault_table
    result = trial("client cancel", phase)
    assert (result.failed, result.disturbed, result.leaked_blocks) == ([], [], 0)
    assert result.expired == (None if phase == "draining" else 0)
