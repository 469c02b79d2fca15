"""Cases of attention in the multi-head form: whole prompts, and pieces behind a prefix, of both record formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kernels.bench.attention import HEADS, SCALE, random_records
from kernels.bench.case import Case, Trial
from kernels.cache.layout import PAGE_TOKENS, unpack_latent
from kernels.dsa import attend, paged_reference
from kernels.dsa.dense import NOPE_DIM, VALUE_DIM, attend_dense
from kernels.dsa.pieces import PieceRun
from kernels.testing.compare import assert_close

CHECKED_HEADS = 2  # the reference computes in float64


def _case(pieces: Sequence[tuple[int, int]], *, heads: int = HEADS, float8: bool, tiny: bool = False) -> Case:
    """Pieces given as rows and keys, each of a sequence of its own whose pages lie in no order."""
    rows, keys = (sum(one[part] for one in pieces) for part in (0, 1))
    most_rows, most_keys = (max(one[part] for one in pieces) for part in (0, 1))
    query_dim = NOPE_DIM + attend.ROPE_DIM

    def prepare(device: str) -> Trial:
        maker = torch.Generator(device).manual_seed(1)
        pages = -(-most_keys // PAGE_TOKENS)
        records = random_records(len(pieces) * pages * PAGE_TOKENS, float8, device)
        table = torch.randperm(len(pieces) * pages, device=device, generator=maker).view(-1, pages).to(torch.int32)
        spans, row, key = [], 0, 0
        for some_rows, some_keys in pieces:
            spans.append((row, some_rows, key, some_keys))
            row, key = row + some_rows, key + some_keys
        on_device = torch.tensor(spans, dtype=torch.int32, device=device)
        q = torch.randn(rows, heads, query_dim, device=device, generator=maker).to(torch.bfloat16)
        w = torch.randn(2, heads, NOPE_DIM, attend.LATENT_DIM, device=device, generator=maker) / 16
        w_uk, w_uv = w.to(torch.bfloat16)
        run = PieceRun(0, rows, 0, keys, most_rows, most_keys)
        q_nope, q_rope = q[..., :NOPE_DIM], q[..., NOPE_DIM:]

        def check(result: Any) -> None:
            """A piece at a time, its first heads."""
            some = slice(0, CHECKED_HEADS)
            for piece, (first, count, _, _) in enumerate(spans):
                at = slice(first, first + count)
                places = (table[piece : piece + 1], on_device[piece : piece + 1])
                queries = (q_nope[at, some], q_rope[at, some])
                out, lse = paged_reference.attend_dense(*queries, records, *places, w_uk[some], w_uv[some], SCALE)
                bound = 1e-2 * float(out.abs().max().clamp(min=1.0))
                assert_close(result[0][at, some], out, absolute=bound, relative=2**-7, what="out")
                assert_close(result[1][at, some], lse, absolute=1e-3, relative=1e-5, what="lse")

        def baseline() -> Any:
            outs = []
            for piece, (first, count, _, seen) in enumerate(spans):
                used = records.view(-1, PAGE_TOKENS, records.shape[1])[table[piece].long()].flatten(0, 1)[:seen]
                if float8:
                    used = unpack_latent(used, attend.LATENT_DIM, torch.bfloat16)
                latent, rope = used.split((attend.LATENT_DIM, attend.ROPE_DIM), dim=1)
                k = torch.cat((torch.matmul(latent, w_uk.transpose(1, 2)), rope.expand(heads, -1, -1)), dim=-1)
                v = torch.matmul(latent, w_uv.transpose(1, 2))
                visible = torch.ones(count, seen, dtype=torch.bool, device=device).tril(seen - count)
                some_q = q[first : first + count].transpose(0, 1)
                outs.append(
                    torch.nn.functional.scaled_dot_product_attention(some_q, k, v, attn_mask=visible, scale=SCALE)
                )
            return outs

        return Trial(
            run=lambda: attend_dense(q_nope, q_rope, records, table, on_device, run, w_uk, w_uv, SCALE),
            check=check,
            baseline=baseline,
            baseline_name="torch: gather, matmul, scaled_dot_product_attention with a mask, a piece at a time",
        )

    pairs = sum(count * (seen - count) + count * (count + 1) // 2 for count, seen in pieces)
    expanded = attend.LATENT_DIM * (NOPE_DIM + VALUE_DIM)
    record = attend.RECORD_BYTES if float8 else 2 * attend.QUERY_DIM
    shape = f"{len(pieces)} x {most_rows} of {most_keys}"
    return Case(
        name=f"{shape} {'float8' if float8 else 'bfloat16'}",
        moved_bytes=keys * record + 2 * heads * (expanded + rows * (query_dim + VALUE_DIM)),
        flops=2 * heads * (keys * expanded + pairs * (query_dim + VALUE_DIM)),
        precision="bf16",
        prepare=prepare,
        tiny=tiny,
    )


def dense() -> list[Case]:
    """One prompt, several, and a piece behind a prefix; up to 4,096 keys, as the model takes them at a time."""
    tiny = _case([(3, 70), (65, 65)], heads=2, float8=True, tiny=True)
    shapes = [[(2048, 2048)], [(512, 512)] * 8, [(512, 2048)]]
    return [tiny, *(_case(shape, float8=form) for form in (False, True) for shape in shapes)]
