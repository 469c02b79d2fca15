"""The ahead-of-time gate finds what it is there for. Each compilation runs in a process that does not interpret."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

ROOT = Path(__file__).parents[4]
PROBE = Path(__file__).with_name("probe.py")


@pytest.fixture(scope="module")
def verdicts():
    """What the gate says of each build of probe.py."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # of `make kernels-matrix`
    environment |= {"PYTHONPATH": path, "TRITON_CACHE_DIR": str(ROOT / ".cache" / "kernels" / "triton")}
    command = [sys.executable, str(PROBE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


def test_a_good_build_passes(verdicts):
    assert verdicts["good"] == []


def test_spills_are_found(verdicts):
    assert any("registers are spilled" in fault for fault in verdicts["spilling"])


def test_too_much_shared_memory_is_found(verdicts):
    assert any("bytes of shared memory, the limit is 232448" in fault for fault in verdicts["wide"])


def test_a_product_without_tensor_cores_is_found(verdicts):
    assert verdicts["narrow"] == ["no wgmma in the PTX"]
