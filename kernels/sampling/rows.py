"""What the rows of a step ask for, as tensors on the device.

Legend: N rows of the step, R rows whose logits change, V vocabulary, W = V / 32 words of a bitmask, K entries of all
rows together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Draws:
    """What the rows ask for, on the device, each [N]: temperature float32 (0: the largest logit), top_k int32 (0: all),
    top_p float64 (1: all), log_min_p float64 (minus infinity: all), seeds [N, 2] int32 (`noise.seed_words`), positions
    int32. filtered: whether any row has a top_k or a top_p below 1; without one nothing is kept for a second look.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    log_min_p: torch.Tensor
    seeds: torch.Tensor
    positions: torch.Tensor
    filtered: bool


@dataclass(frozen=True, slots=True)
class Adjustments:
    """What changes in R rows, on the device. `rows` [R] int32: their places among the logits, each once.

    seen, bias, forbidden: entries of row r lie from start[r] to start[r + 1] - 1, start [R + 1] int32; a row's ids are
    int32 and distinct. seen_counts [K] float32: how often a token is in the output. repetition, presence, frequency:
    [R] float32. bias_values: float32. mask_rows [R] int32: row of `masks` [any, W] int32 (see
    `reference.allowed_tokens`), -1: none.
    """

    rows: torch.Tensor
    seen_start: torch.Tensor
    seen_ids: torch.Tensor
    seen_counts: torch.Tensor
    repetition: torch.Tensor
    presence: torch.Tensor
    frequency: torch.Tensor
    bias_start: torch.Tensor
    bias_ids: torch.Tensor
    bias_values: torch.Tensor
    forbidden_start: torch.Tensor
    forbidden_ids: torch.Tensor
    mask_rows: torch.Tensor
    masks: torch.Tensor
