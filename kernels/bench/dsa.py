"""Cases of sparse attention's operations: index logits, top-k."""

from __future__ import annotations

from typing import Any

import torch

from kernels.bench.case import Case, Trial
from kernels.cache.layout import PAGE_TOKENS
from kernels.dsa import logits, paged_reference
from kernels.dsa import topk as topk_module
from kernels.testing.compare import assert_close, assert_same_bits

HEADS, WIDTH, SELECTED = logits.HEADS, logits.WIDTH, topk_module.MOST_SELECTED
FLOPS_A_KEY = 2 * HEADS * WIDTH
BYTES_A_KEY = logits.PAGE_BYTES // PAGE_TOKENS
SEED = 0


def random_pages(num_pages: int, device: str) -> torch.Tensor:
    """Index pages of random finite float8 keys with scales between 0.5 and 1."""
    maker = torch.Generator(device).manual_seed(SEED)
    pages = torch.randint(0, 256, (num_pages, logits.PAGE_BYTES), dtype=torch.uint8, device=device, generator=maker)
    keys = pages[:, : PAGE_TOKENS * WIDTH]
    keys[(keys & 0x7F) == 0x7F] = 0  # NaN
    scales = torch.rand(num_pages, PAGE_TOKENS, device=device, generator=maker) / 2 + 0.5
    pages[:, PAGE_TOKENS * WIDTH :] = scales.view(torch.uint8)
    return pages


def _tables(sequences: int, tokens: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pages in no order for `sequences` of `tokens` keys: (pages, block table)."""
    each = -(-tokens // PAGE_TOKENS)
    maker = torch.Generator(device).manual_seed(SEED)
    order = torch.randperm(sequences * each, device=device, generator=maker).to(torch.int32)
    return random_pages(sequences * each, device), order.view(sequences, each)


def _queries(rows: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    maker = torch.Generator(device).manual_seed(SEED)
    q = torch.randn(rows, HEADS, WIDTH, device=device, generator=maker).to(torch.float8_e4m3fn)
    return q, torch.randn(rows, HEADS, device=device, generator=maker)


def _baseline(q: torch.Tensor, weights: torch.Tensor, keys_SD: torch.Tensor) -> torch.Tensor:
    """What torch has for it: a product in bfloat16, then ReLU and the sum over heads."""
    dots_RNS = (q.flatten(0, 1) @ keys_SD.t()).unflatten(0, (-1, HEADS))
    return torch.bmm(weights[:, None].to(torch.bfloat16), dots_RNS.relu_())[:, 0]


def logits_decode() -> list[Case]:
    """Decode of B sequences with one query each."""
    shapes = [(1, 65536), (1, 163840), (32, 65536), (64, 65536), (64, 131072), (128, 65536)]
    return [_logits_decode(2, 100, tiny=True), *(_logits_decode(*shape) for shape in shapes)]


def _logits_decode(sequences: int, tokens: int, *, tiny: bool = False) -> Case:
    def prepare(device: str) -> Trial:
        pages, table = _tables(sequences, tokens, device)
        q, weights = _queries(sequences, device)
        lengths = torch.full((sequences, 1), tokens, dtype=torch.int32, device=device)
        out = torch.full((sequences, table.shape[1] * PAGE_TOKENS), torch.nan, device=device)
        some = torch.tensor([0, sequences - 1], device=device)

        def run() -> Any:
            logits.index_logits_decode(q[:, None], weights[:, None], pages, table, lengths, out)
            return out

        def check(result: Any) -> None:
            rows = (q[some], weights[some], pages, table, some.to(torch.int32), lengths[some, 0])
            expected = paged_reference.index_logits(*rows, result.shape[1])[:, :tokens]
            assert_close(result[some, :tokens], expected, absolute=2e-6 * float(expected.abs().max()))

        keys = pages[:, : PAGE_TOKENS * WIDTH].view(torch.float8_e4m3fn).to(torch.bfloat16).view(sequences, -1, WIDTH)
        wide = q.to(torch.bfloat16)

        def baseline() -> Any:
            dots = torch.bmm(wide, keys.transpose(1, 2)).relu_()
            return torch.bmm(weights[:, None].to(torch.bfloat16), dots)

        return Trial(run=run, check=check, baseline=baseline, baseline_name="torch.bmm in bfloat16, unpaged keys")

    moved = sequences * tokens * (BYTES_A_KEY + 4)
    name = f"B{sequences} S{tokens}"
    flops = sequences * tokens * FLOPS_A_KEY
    return Case(name=name, moved_bytes=moved, flops=flops, precision="fp8", prepare=prepare, tiny=tiny)


def logits_prefill() -> list[Case]:
    """Chunks of queries at the end of one long context, whose logits fit in memory at a time."""
    return [_logits_prefill(3, 100, tiny=True), *(_logits_prefill(1024, tokens) for tokens in (65536, 131072))]


def _logits_prefill(rows: int, tokens: int, *, tiny: bool = False) -> Case:
    def prepare(device: str) -> Trial:
        pages, table = _tables(1, tokens, device)
        q, weights = _queries(rows, device)
        sequences = torch.zeros(rows, dtype=torch.int32, device=device)
        lengths = torch.arange(tokens - rows + 1, tokens + 1, dtype=torch.int32, device=device)
        out = torch.full((rows, table.shape[1] * PAGE_TOKENS), torch.nan, device=device)
        some = torch.tensor([0, rows - 1], device=device)

        def run() -> Any:
            logits.index_logits_prefill(q, weights, pages, table, sequences, lengths, out)
            return out

        def check(result: Any) -> None:
            expected = paged_reference.index_logits(
                q[some], weights[some], pages, table, sequences[some], lengths[some], result.shape[1]
            )
            for place, row in enumerate(some.tolist()):
                seen = int(lengths[row])
                bound = 2e-6 * float(expected[place, :seen].abs().max())
                assert_close(result[row, :seen], expected[place, :seen], absolute=bound)

        keys_SD = pages[:, : PAGE_TOKENS * WIDTH].view(torch.float8_e4m3fn).to(torch.bfloat16).reshape(-1, WIDTH)
        wide = q.to(torch.bfloat16)
        name = "torch.mm in bfloat16, unpaged keys, 64 rows at a time"

        def baseline() -> Any:
            parts = zip(wide.split(64), weights.split(64), strict=True)
            return [_baseline(part, weight, keys_SD) for part, weight in parts]

        return Trial(run=run, check=check, baseline=baseline, baseline_name=name)

    pairs = rows * tokens - rows * (rows - 1) // 2
    moved = tokens * BYTES_A_KEY + 4 * pairs
    name = f"T{rows} S{tokens}"
    return Case(name=name, moved_bytes=moved, flops=pairs * FLOPS_A_KEY, precision="fp8", prepare=prepare, tiny=tiny)


def topk() -> list[Case]:
    """Rows of random logits; decode batches and a chunk of prefill."""
    shapes = [(1, 65536), (64, 65536), (64, 163840), (1024, 65536), (1024, 131072)]
    return [_topk(2, 4100, tiny=True), *(_topk(*shape) for shape in shapes)]


def _topk(rows: int, width: int, *, tiny: bool = False) -> Case:
    def prepare(device: str) -> Trial:
        maker = torch.Generator(device).manual_seed(SEED)
        logits_RS = torch.randn(rows, width, device=device, generator=maker)
        lengths = torch.full((rows,), width, dtype=torch.int32, device=device)

        def check(result: Any) -> None:
            assert_same_bits(result[:4], paged_reference.topk_rows(logits_RS[:4], lengths[:4], SELECTED))

        return Trial(
            run=lambda: topk_module.topk(logits_RS, lengths, SELECTED),
            check=check,
            baseline=lambda: torch.topk(logits_RS, SELECTED, sorted=False),
            baseline_name="torch.topk",
        )

    return Case(name=f"R{rows} S{width}", moved_bytes=4 * rows * (width + SELECTED), prepare=prepare, tiny=tiny)
