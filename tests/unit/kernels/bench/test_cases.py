"""Every operation's bench runs: its tiny cases pass their own check, and a check of a tensor finds a planted error."""

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

import torch

from kernels.registry import OPERATIONS, resolve


def spoilt(result):
    """A copy of a tensor, with its first row changed."""
    result = result.clone()
    wide = result.float() if result.is_floating_point() else result
    result[0] = (wide[0] * 2 + 1).to(result.dtype)
    return result


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_tiny_cases_pass_their_check(device, operation):
    cases = resolve(operation.bench)()
    tiny = [case for case in cases if case.tiny]
    assert len(cases) > len(tiny) > 0 and all(case.moved_bytes > 0 for case in cases)
    for case in tiny:
        trial = case.prepare(device)
        result = trial.run()
        trial.check(result)
        if trial.baseline is not None:
            trial.baseline()
        if isinstance(result, torch.Tensor):
            with pytest.raises(AssertionError):
                trial.check(spoilt(result))
