"""The engine on a GPU: tests here run by `make test-gpu`, and skip with the reason anywhere else."""

import functools

import pytest

from tests.support.models import load_whole, make_golden_checkpoint
from tests.unit.kernels.conftest import INTERPRETED


@pytest.fixture
def cuda():
    """The CUDA device, with kernels compiled."""
    pytest.importorskip("triton", reason="triton is not installed on this platform")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if INTERPRETED:
        pytest.skip("kernels are interpreted in this process: run `make test-gpu`")
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def golden_directory(tmp_path_factory):
    """Name of a golden file to the directory of its checkpoint."""
    return functools.cache(lambda name: make_golden_checkpoint(name, tmp_path_factory.mktemp("golden") / name))


@pytest.fixture(scope="session")
def golden_weights(golden_directory):
    """Name of a golden file to its float32 weights on one rank, on the CPU."""
    return functools.cache(lambda name: load_whole(golden_directory(name)))
