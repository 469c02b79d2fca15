"""Cases of sampling, at DeepSeek-V3.2's vocabulary.

Legend: N rows, V vocabulary.
"""

from __future__ import annotations

import functools

import torch

from kernels.bench.case import Case, Trial
from kernels.sampling import noise, reference
from kernels.sampling.rows import Adjustments, Draws

VOCAB = 129_280
ROWS = (1, 64, 128)
TINY, TINY_VOCAB = 2, 3000


def sample() -> list[Case]:
    """Temperature alone, and with top_k and top_p; the floor is one reading of the logits."""
    return [
        Case(
            name=f"{'top_k 50, top_p 0.95' if filtered else 'temperature'}, N={n}",
            moved_bytes=n * VOCAB * 4,
            prepare=functools.partial(_sample, n, filtered, TINY_VOCAB if n == TINY else VOCAB),
            tiny=n == TINY,
        )
        for n in (TINY, *ROWS)
        for filtered in (False, True)
    ]


def _sample(num_rows: int, filtered: bool, vocab: int, device: str) -> Trial:
    from kernels.sampling.sample import sample_tokens

    logits = torch.randn(num_rows, vocab, device=device) * 3
    draws = Draws(
        temperature=torch.ones(num_rows, device=device),
        top_k=torch.full((num_rows,), 50 * filtered, dtype=torch.int32, device=device),
        top_p=torch.full((num_rows,), 0.95 if filtered else 1.0, dtype=torch.float64, device=device),
        log_min_p=torch.full((num_rows,), float("-inf"), dtype=torch.float64, device=device),
        seeds=torch.tensor([noise.seed_words(n) for n in range(num_rows)], dtype=torch.int32, device=device),
        positions=torch.arange(num_rows, dtype=torch.int32, device=device),
        filtered=filtered,
    )

    def check(found: tuple[torch.Tensor, torch.Tensor]) -> None:
        assert torch.equal(found[0], reference.sample_tokens(logits, draws)[0]), "other tokens than the reference's"

    return Trial(
        run=lambda: sample_tokens(logits, draws),
        check=check,
        baseline=lambda: torch.multinomial(torch.softmax(logits, dim=-1), 1),
        baseline_name="torch.multinomial of softmax",
    )


def adjust() -> list[Case]:
    """Penalties over 4,096 tokens of each row; the floor reads ids, counts and logits, and writes these."""
    return [
        Case(name=f"4096 seen, N={n}", moved_bytes=n * 4096 * 16, prepare=functools.partial(_adjust, n), tiny=n == TINY)
        for n in (TINY, *ROWS)
    ]


def _adjust(num_rows: int, device: str) -> Trial:
    from kernels.sampling.adjust import adjust_

    logits = torch.randn(num_rows, VOCAB, device=device)
    work, expected = logits.clone(), logits.clone()
    seen = torch.cat([torch.randperm(VOCAB, device=device)[:4096] for _ in range(num_rows)])
    none = torch.zeros(num_rows + 1, dtype=torch.int32, device=device)
    asked = Adjustments(
        rows=torch.arange(num_rows, dtype=torch.int32, device=device),
        seen_start=torch.arange(0, 4096 * num_rows + 1, 4096, dtype=torch.int32, device=device),
        seen_ids=seen.int(),
        seen_counts=torch.randint(0, 4, seen.shape, device=device).float(),
        repetition=torch.full((num_rows,), 1.1, device=device),
        presence=torch.full((num_rows,), 0.3, device=device),
        frequency=torch.full((num_rows,), 0.2, device=device),
        bias_start=none,
        bias_ids=none[:0],
        bias_values=logits.new_empty(0),
        forbidden_start=none,
        forbidden_ids=none[:0],
        mask_rows=torch.full((num_rows,), -1, dtype=torch.int32, device=device),
        masks=torch.zeros(1, VOCAB // 32, dtype=torch.int32, device=device),
    )

    def run() -> torch.Tensor:
        adjust_(work, asked)
        return work

    def check(found: torch.Tensor) -> None:
        reference.adjust_(expected, asked)
        assert torch.equal(found, expected), "other logits than the reference's"

    return Trial(run=run, check=check)
