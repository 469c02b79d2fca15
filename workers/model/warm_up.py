"""Prompts that a device computes before it serves, so that no request waits while a kernel is compiled."""

from __future__ import annotations

from baleen.blocks import BLOCK_TOKENS

SHORTEST = BLOCK_TOKENS - 1


def warm_up_prompts(*, most_tokens: int, index_topk: int, most_context: int) -> list[range]:
    """Places of the tokens of each prompt, in the order in which they are computed; the first one fits in a block.

    Kernels have forms for few rows and for many, and attention one for prompts from their start, one for a few tokens
    after many and one where keys are selected. So sizes go from under a block to `most_tokens`, each twice the one
    before, and begin at 0, end at index_topk keys and begin there, as far as `most_context` reaches.
    """
    limit = min(most_tokens, most_context)
    sizes = [SHORTEST]
    while sizes[-1] < limit:
        sizes.append(min(2 * (sizes[-1] + sizes[-1] % 2), limit))
    starts = ((0, index_topk - size, index_topk) for size in sizes)
    found = [
        range(start, start + size) for size, each in zip(sizes, starts, strict=True) for start in each if start >= 0
    ]
    return list(dict.fromkeys(places for places in found if places.stop <= most_context))
