"""Tests that share what does not start fail at once, though each of them has one more try."""

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]

SHARED = """
import pytest

pytestmark = pytest.mark.flaky(reruns=1)
starts = []

@pytest.fixture(scope="module", params=["down", "late"])
def cluster(request):
    starts.append(request.param)
    assert request.param == "late" and starts.count("late") > 1, "no cluster"

@pytest.mark.parametrize("number", range(3))
def test_it(cluster, number):
    assert cluster is None

def test_starts():
    print("starts", *starts)
"""


def test_a_shared_fixture_is_started_twice_at_most(tmp_path):
    path = tmp_path / "test_shared.py"
    path.write_text(SHARED)
    command = [sys.executable, "-m", "pytest", "-p", "pytest_rerunfailures", "-p", "no:cacheprovider", "-s"]
    done = subprocess.run(
        [*command, "-p", "tests.support.shared_starts", "-c", "/dev/null", "--rootdir", str(tmp_path), str(path)],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        timeout=60,
        check=False,
    )
    # what comes at the second try is there for all
    assert "starts down down late late" in done.stdout, done.stdout + done.stderr
    assert "4 passed, 3 errors" in done.stdout and done.stdout.count("no cluster") >= 3
