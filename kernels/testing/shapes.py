"""Shapes at which kernels go wrong: counts around a page, tables of pages in no order, seeds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

PAGE_TOKENS = 64
KEY_COUNTS = (0, 1, 63, 64, 65)
SEED = 20261130


def generator(seed: int = SEED) -> torch.Generator:
    """A generator on the CPU: the same numbers for every device."""
    return torch.Generator().manual_seed(seed)


def block_table(lengths: Sequence[int], *, spare_pages: int = 3, seed: int = SEED) -> tuple[torch.Tensor, int]:
    """Pages for sequences of `lengths` tokens in no order: (table [B, most pages] int32, number of pages).

    Entries past a sequence's last page are -1. Pages that no sequence has lie among the others.
    """
    counts = [-(-length // PAGE_TOKENS) for length in lengths]
    total = sum(counts) + spare_pages
    order = torch.randperm(total, generator=generator(seed)).to(torch.int32)
    table = torch.full((len(lengths), max([1, *counts])), -1, dtype=torch.int32)
    start = 0
    for row, count in enumerate(counts):
        table[row, :count] = order[start : start + count]
        start += count
    return table, total
