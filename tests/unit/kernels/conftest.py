"""One body for two runs of a kernel: interpreted on a CPU, compiled on a GPU (`make test-gpu`)."""

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # tests/conftest.py says so unless the caller did


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where the tensors of a kernel's test live: "cpu" under the repaired interpreter, or "cuda"."""
    pytest.importorskip("triton", reason="triton is not installed on this platform")
    if request.param == "cpu":
        if not INTERPRETED:
            pytest.skip("kernels are compiled in this process (TRITON_INTERPRET is not 1)")
        from kernels.testing import interpreter

        interpreter.install()
        return "cpu"
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if INTERPRETED:
        pytest.skip("kernels are interpreted in this process: run `make test-gpu`")
    return "cuda"


@pytest.fixture(autouse=True)
def poison(request):
    """In tests with `device`, `torch.empty` gives NaN between guard bytes that are checked at the end."""
    if "device" not in request.fixturenames:
        yield
        return
    request.getfixturevalue("device")
    from kernels.testing.poison import poisoned

    with poisoned():
        yield
