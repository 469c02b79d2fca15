"""Comparison of a kernel's numbers with those of a reference, with stated bounds; a failure names the worst element."""

from __future__ import annotations

import torch


def assert_close(
    got: torch.Tensor, expected: torch.Tensor, *, absolute: float = 0.0, relative: float = 0.0, what: str = "result"
) -> None:
    """Every element is within absolute + relative * |expected|; NaN meets NaN only, an infinity only itself.

    got and expected have one shape and any dtypes and devices; they are compared in float64. Raises AssertionError that
    names the worst element, its place and how many others are wrong.
    """
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if got.numel() == 0:
        return
    a, b = got.detach().cpu().double(), expected.detach().cpu().double()
    allowed = absolute + relative * b.abs()
    error = (a - b).abs()
    alike = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(alike, torch.zeros_like(error), error).nan_to_num(nan=torch.inf, posinf=torch.inf)
    # not `error > allowed`: an infinity that was expected allows any finite error
    wrong = (error > allowed) | (~alike & ~b.isfinite())
    if not bool(wrong.any()):
        return
    excess = torch.where(wrong, (error - allowed.nan_to_num(posinf=0.0)).nan_to_num(nan=torch.inf), -torch.inf)
    place = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {wrong.numel()} elements are wrong; the worst is at {place}: "
        f"{a[place].item():.9g}, expected {b[place].item():.9g} "
        f"(error {error[place].item():.3g}, allowed {allowed[place].item():.3g})"
    )


def assert_same_bits(got: torch.Tensor, expected: torch.Tensor, *, what: str = "result") -> None:
    """Shape, dtype and every byte are equal. Raises AssertionError that names the first element that differs."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype), (
        f"{what}: {tuple(got.shape)} {got.dtype}, expected {tuple(expected.shape)} {expected.dtype}"
    )
    a, b = (x.detach().cpu().contiguous().view(-1) for x in (got, expected))
    size = a.dtype.itemsize
    differs = (a.view(torch.uint8).view(-1, size) != b.view(torch.uint8).view(-1, size)).any(-1)
    if bool(differs.any()):
        first = int(differs.to(torch.uint8).argmax())
        place = tuple(int(i) for i in torch.unravel_index(torch.tensor(first), got.shape)) if got.dim() else ()
        raise AssertionError(
            f"{what}: {int(differs.sum())} of {differs.numel()} elements differ in bits; the first is at {place}: "
            f"{a[first].float().item():.9g}, expected {b[first].float().item():.9g}"
        )


def difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """1 - 2<x, y> / (<x, x> + <y, y>) in float64: 0 for equal tensors, about half the squared relative error else."""
    x, y = got.detach().cpu().double().flatten(), expected.detach().cpu().double().flatten()
    scale = float(x @ x + y @ y)
    return 0.0 if scale == 0.0 else 1.0 - 2.0 * float(x @ y) / scale
