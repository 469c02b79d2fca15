"""Settings for every test: one compute thread a process, kernels interpreted, one more try for real processes."""

import os
import signal
from pathlib import Path

# before torch is imported, here and in every process that a test starts: OpenMP threads that outnumber the cores
# wait for each other by spinning
os.environ["OMP_NUM_THREADS"] = "1"
# read when a kernel's module is imported, so it is for the whole process; `make test-gpu` sets 0
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
from hypothesis import settings

# no time limit for an example: the machine may be busy, and timing belongs in benchmarks
settings.register_profile("house", settings.default, deadline=None)
# of `make check`: `make test` tries four times as many where a test does not say how many
settings.register_profile("quick", settings.get_profile("house"), max_examples=25)
settings.load_profile("house")

# a shell that starts the tests in the background has them ignore it, and all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.support.shared_starts"]

ONE_MORE_TRY = {"contract", "faults", "integration"}  # many processes on few cores; CONTRIBUTING.md says what follows

TURNS = (
    "test_golden_engine.py",
    "test_cluster.py",
    "faults",
    "contract",
    "test_cluster_nodes.py",
    "test_golden_cluster.py",
    "test_two_hosts.py",
    "integration",
)
"""Files and folders in the order in which they begin; the rest follows. Those that keep all cores busy lie apart."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(tests) and item.path.relative_to(tests).parts[0] in ONE_MORE_TRY:
            item.add_marker(pytest.mark.flaky(reruns=1))
    # sorting keeps the order of what has the same rank, so that a file's tests stay together
    items.sort(key=lambda item: _turn(item.path))


def _turn(path: Path) -> int:
    """When a file's turn is: files run side by side, so the long ones begin and many short ones end."""
    return next((turn for turn, name in enumerate(TURNS) if name in path.parts), len(TURNS))
