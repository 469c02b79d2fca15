"""Log-probabilities of prompts, from the hidden states of a step: in slices, since their logits are many.

Legend: S scored places, D hidden size, R places of a slice, V vocabulary, K the token itself and the most likely ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from baleen.reports import PromptLogprobs
from kernels.sampling.reference import log_probabilities, top_tokens
from workers.engine.batch import BatchItem, SamplingFailure
from workers.engine.request import Request

SLICE_NUMBERS = 1 << 23
"""Logits worked on at a time."""

SLICE_BYTES = 40 * SLICE_NUMBERS
"""What a slice takes at most: its logits, the keys that order them, and their log-probabilities in float64."""

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Float32 logits [R, V] of hidden states [R, D]."""


@torch.inference_mode()
def score_prompts(
    logits: Logits, x_SD: torch.Tensor, items: Sequence[BatchItem], vocab_size: int
) -> dict[Request, PromptLogprobs | SamplingFailure]:
    """The scores of each request that has a prompt to score; x_SD: of their items in order."""
    found: dict[Request, PromptLogprobs | SamplingFailure] = {}
    first = 0
    for item in items:
        if item.scored:
            end = first + len(item.scored)
            found[item.request] = _score(logits, x_SD[first:end], item, vocab_size)
            first = end
    return found


def _score(logits: Logits, x_SD: torch.Tensor, item: BatchItem, vocab_size: int) -> PromptLogprobs | SamplingFailure:
    scores, places = item.request.prompt_scores, item.scored
    assert scores is not None
    tokens_S1 = torch.tensor(scores.prompt_ids[places.start : places.stop], device=x_SD.device)[:, None]
    num_top = min(scores.num_top, vocab_size)
    rows = max(1, SLICE_NUMBERS // vocab_size)
    parts = [
        _slice(logits(x_SD[row : row + rows]), tokens_S1[row : row + rows], num_top)
        for row in range(0, len(places), rows)
    ]
    ids_SK, values_SK = (torch.cat(part) for part in zip(*parts, strict=True))
    unknown_S = values_SK[:, 0].isnan()
    if unknown_S.any():
        return SamplingFailure(f"token {places[int(unknown_S.int().argmax())]} of the prompt has no log-probability")
    return PromptLogprobs(
        places.start,
        values_SK[:, 0].tolist(),
        ids_SK[:, 1:].flatten().tolist(),
        values_SK[:, 1:].flatten().tolist(),
    )


def _slice(x_RV: torch.Tensor, tokens_R1: torch.Tensor, num_top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [R, K] int64 and log-probabilities [R, K] float32."""
    ids_RK = torch.cat((tokens_R1, top_tokens(x_RV, num_top)), dim=1) if num_top else tokens_R1
    return ids_RK, log_probabilities(x_RV, ids_RK)
