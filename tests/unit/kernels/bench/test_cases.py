"""Every operation's bench runs: its tiny case passes its own check, and the check finds a planted error."""

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

import torch

from kernels.registry import OPERATIONS, resolve


def spoilt(result):
    """A copy of what an operation returned, with the first row of the first tensor changed."""
    if isinstance(result, torch.Tensor):
        result = result.clone()
        wide = result.float() if result.is_floating_point() else result
        result[0] = (wide[0] * 2 + 1).to(result.dtype)
        return result
    first, *others = result
    return type(result)((spoilt(first), *others))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_tiny_case_passes_its_check(device, operation):
    cases = resolve(operation.bench)()
    (tiny,) = [case for case in cases if case.tiny]
    assert len(cases) > 1 and all(case.moved_bytes > 0 for case in cases)
    trial = tiny.prepare(device)
    result = trial.run()
    trial.check(result)
    if trial.baseline is not None:
        trial.baseline()
    with pytest.raises(AssertionError):
        trial.check(spoilt(result))
