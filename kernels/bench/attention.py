"""Cases of latent attention: selected records of both formats, and all records of short contexts."""

from __future__ import annotations

from typing import Any

import torch

from kernels.bench.case import Case, Trial
from kernels.cache.layout import PAGE_TOKENS, unpack_latent
from kernels.dsa import attend, paged_reference
from kernels.testing.compare import assert_close

HEADS, SELECTED, SCALE = 128, attend.MOST_SELECTED, 0.135
FLOPS_A_RECORD = 2 * (attend.QUERY_DIM + attend.LATENT_DIM)
FLOAT8_MAX_EXPONENT = 120  # scales of random records are 2**-7


def random_records(slots: int, float8: bool, device: str) -> torch.Tensor:
    """Records of random numbers: [slots, 576] bfloat16, or [slots, 656] uint8."""
    maker = torch.Generator(device).manual_seed(0)
    if not float8:
        return torch.randn(slots, attend.QUERY_DIM, device=device, generator=maker).to(torch.bfloat16)
    records = torch.empty(slots, attend.RECORD_BYTES, dtype=torch.uint8, device=device)
    codes = torch.randint(0, 256, (slots, attend.LATENT_DIM), dtype=torch.uint8, device=device, generator=maker)
    codes[(codes & 0x7F) == 0x7F] = 0  # NaN
    records[:, : attend.LATENT_DIM] = codes
    scales = torch.full((slots, 4), FLOAT8_MAX_EXPONENT << 23, dtype=torch.int32, device=device)
    records[:, attend.LATENT_DIM : attend.LATENT_DIM + 16] = scales.view(torch.uint8)
    rope = torch.randn(slots, attend.ROPE_DIM, device=device, generator=maker).to(torch.bfloat16)
    records[:, attend.LATENT_DIM + 16 :] = rope.view(torch.uint8)
    return records


def _queries(rows: int, heads: int, device: str) -> torch.Tensor:
    maker = torch.Generator(device).manual_seed(1)
    return torch.randn(rows, heads, attend.QUERY_DIM, device=device, generator=maker).to(torch.bfloat16)


def _check(result: Any, q: torch.Tensor, records: torch.Tensor, slots: torch.Tensor) -> None:
    """The first and the last row against the reference."""
    for row in (0, q.shape[0] - 1):
        one = slice(row, row + 1)
        out, lse = paged_reference.attend_slots(q[one], records, slots[one], attend.LATENT_DIM, SCALE)
        bound = 4e-3 * float(out.abs().max().clamp(min=1.0))
        assert_close(result[0][one], out, absolute=bound, relative=2**-7, what="out")
        assert_close(result[1][one], lse, absolute=1e-4, relative=1e-6, what="lse")


def _case(
    rows: int, slots: int, selected: int, *, heads: int = HEADS, float8: bool, paged: bool = False, tiny: bool = False
) -> Case:
    """Rows of `selected` records each: taken at random among `slots`, or whole sequences of their own if paged."""

    def prepare(device: str) -> Trial:
        records, q = random_records(slots, float8, device), _queries(rows, heads, device)
        maker = torch.Generator(device).manual_seed(2)
        lengths = torch.full((rows,), selected, dtype=torch.int32, device=device)
        sequences = torch.arange(rows, dtype=torch.int32, device=device)
        pages = selected // PAGE_TOKENS
        if paged:
            table = torch.randperm(slots // PAGE_TOKENS, device=device, generator=maker)[: rows * pages]
            table = table.view(rows, pages).to(torch.int32)
            places = torch.arange(selected, dtype=torch.int32, device=device).expand(rows, -1)
            chosen = paged_reference.slots_of(places, table, sequences)
        else:
            chosen = torch.randint(0, slots, (rows, selected), dtype=torch.int32, device=device, generator=maker)

        def run() -> Any:
            if paged:
                return attend.attend_paged(q, records, table, sequences, lengths, SCALE)
            return attend.attend_selected(q, records, chosen, SCALE)

        def baseline() -> Any:
            outs = []
            for some_q, some_slots in zip(q.split(64), chosen.split(64), strict=True):
                gathered = records[some_slots.flatten().long()]
                if float8:
                    gathered = unpack_latent(gathered, attend.LATENT_DIM, torch.bfloat16)
                keys = gathered.view(some_q.shape[0], selected, -1)
                scores = torch.bmm(some_q, keys.transpose(1, 2)).float() * SCALE
                weights = torch.softmax(scores, -1).to(torch.bfloat16)
                outs.append(torch.bmm(weights, keys[..., : attend.LATENT_DIM]))
            return outs

        return Trial(
            run=run,
            check=lambda result: _check(result, q, records, chosen),
            baseline=baseline,
            baseline_name="torch: gather, bmm, softmax, bmm, 64 rows at a time",
        )

    record = attend.RECORD_BYTES if float8 else 2 * attend.QUERY_DIM
    moved = min(slots, rows * selected) * record + rows * heads * 2 * (attend.QUERY_DIM + attend.LATENT_DIM)
    flops = rows * heads * selected * FLOPS_A_RECORD
    name = f"R{rows} K{selected} {'float8' if float8 else 'bfloat16'}"
    return Case(name=name, moved_bytes=moved, flops=flops, precision="bf16", prepare=prepare, tiny=tiny)


def selected() -> list[Case]:
    """Decode batches, and a chunk of prefill, at 2,048 selected records a row."""
    tiny = _case(2, 100, 70, heads=4, float8=True, tiny=True)
    shapes = [(1, 65536), (8, 8 * 65536), (32, 2**21), (128, 2**21), (4096, 131072)]
    return [tiny, *(_case(*shape, SELECTED, float8=form) for form in (False, True) for shape in shapes)]


def paged() -> list[Case]:
    """Whole contexts of 1,024 tokens."""
    tiny = _case(2, 256, 128, heads=4, float8=False, paged=True, tiny=True)
    return [tiny, *(_case(128, 131072, 1024, float8=form, paged=True) for form in (False, True))]
