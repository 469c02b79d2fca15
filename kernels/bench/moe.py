"""What the mixture of experts costs at the sizes of the 671B model, on a rank that holds a share of the experts.

Legend: T tokens, K experts per token, P pairs, D hidden size, I inner width, E experts of the model, L of the rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from kernels.bench.case import Case, Trial
from kernels.bench.quant import random_float8
from kernels.moe import pack_reference, reference
from kernels.quant.reference import quantise_activations
from kernels.quant.scaled import Scaled
from kernels.testing.compare import assert_close, assert_same_bits, difference

HIDDEN, INNER, EXPERTS, CHOSEN = 7168, 2048, 256, 8
GATE: dict[str, Any] = {
    "experts_per_token": CHOSEN,
    "num_groups": 8,
    "topk_groups": 4,
    "normalise": True,
    "scaling": 2.5,
}
EXPERT_BYTES = 3 * HIDDEN * INNER
BOUND = 1e-4
"""Of `difference` for two float8 products in a row: what is between them may round to the next float8 number."""


def gate_cases() -> list[Case]:
    """Decode batches and a prefill chunk."""
    return [replace(_gate_case(3), tiny=True), *(_gate_case(t) for t in (1, 128, 4096))]


def _gate_case(num_tokens: int) -> Case:
    def prepare(device: str) -> Trial:
        from kernels.moe.gate import gate

        x_TD = torch.randn(num_tokens, HIDDEN, device=device, dtype=torch.bfloat16)
        weight_ED = torch.randn(EXPERTS, HIDDEN, device=device, dtype=torch.bfloat16) / HIDDEN**0.5
        bias_E = torch.randn(EXPERTS, device=device) * 0.1

        def check(result: tuple[torch.Tensor, torch.Tensor]) -> None:
            expected_ids, expected = reference.gate(x_TD, weight_ED.float(), bias_E, **GATE)
            same = result[0].sort().values == expected_ids.sort().values
            # sums in float32 of another order may swap two experts that are all but equal
            assert float(same.all(1).float().mean()) > 0.999
            assert_close(result[1].sum(1), expected.sum(1), relative=1e-5)

        return Trial(
            run=lambda: gate(x_TD, weight_ED, bias_E, **GATE),
            check=check,
            baseline=lambda: reference.gate(x_TD, weight_ED.float(), bias_E, **GATE),
            baseline_name="torch",
        )

    moved = 2 * HIDDEN * (num_tokens + EXPERTS) + num_tokens * CHOSEN * 12
    flops = 2 * num_tokens * HIDDEN * EXPERTS
    return Case(name=f"{num_tokens} tokens", moved_bytes=moved, flops=flops, precision="bf16", prepare=prepare)


def order_cases() -> list[Case]:
    """Pairs of a decode batch and of a prefill chunk."""
    return [replace(_order_case(100), tiny=True), *(_order_case(p) for p in (1024, 32768))]


def _order_case(num_pairs: int) -> Case:
    def prepare(device: str) -> Trial:
        from kernels.moe.order import RowGroups, order_pairs

        ids_P = torch.randint(0, 32, (num_pairs,), device=device)

        def check(groups: RowGroups) -> None:
            expected = reference.order_pairs(ids_P.cpu(), range(32))
            for got, wanted in zip((groups.order_P, groups.starts_E, groups.counts_E), expected, strict=True):
                assert_same_bits(got, wanted)

        return Trial(
            run=lambda: order_pairs(ids_P, range(32)),
            check=check,
            baseline=lambda: (ids_P.argsort(stable=True), ids_P.bincount(minlength=32)),
            baseline_name="torch.argsort",
        )

    return Case(name=f"{num_pairs} pairs, 32 experts", moved_bytes=12 * num_pairs, prepare=prepare)


def expert_cases() -> list[Case]:
    """Decode and prefill on 32 and 8 experts of 256: float8, and bfloat16 for comparison."""
    loads = ((32, 1024), (8, 1024), (32, 32768), (1, 4096))
    full = [*(_expert_case(experts, p, float8=True) for experts, p in loads), _expert_case(32, 1024, float8=False)]

    def prepare(device: str) -> Trial:
        return _expert_trial(2, 6, 256, 128, device, float8=True)

    return [replace(full[0], name="tiny", prepare=prepare, tiny=True), *full]


def _expert_case(num_experts: int, num_pairs: int, *, float8: bool) -> Case:
    def prepare(device: str) -> Trial:
        return _expert_trial(num_experts, num_pairs, HIDDEN, INNER, device, float8=float8)

    kind, size = ("fp8", 1) if float8 else ("bf16", 2)
    h_bytes = 2 * num_pairs * INNER * size
    return Case(
        name=f"{num_experts} experts, {num_pairs} pairs, {kind}",
        moved_bytes=num_experts * EXPERT_BYTES * size + num_pairs * HIDDEN * (size + 2) + h_bytes,
        flops=2 * num_pairs * EXPERT_BYTES,
        precision="fp8" if float8 else "bf16",
        prepare=prepare,
    )


def _expert_trial(num_experts: int, num_pairs: int, hidden: int, inner: int, device: str, *, float8: bool) -> Trial:
    from kernels.moe.experts import expert_mlps
    from kernels.moe.order import order_pairs

    x_PD = torch.randn(num_pairs, hidden, device=device, dtype=torch.bfloat16)
    x, gate_up, down = Scaled(x_PD), *_weights(num_experts, hidden, inner, device, float8=float8)
    if float8:
        x = Scaled(*(t.to(device) for t in quantise_activations(x_PD, ue8m0=True)))
    ids_P = torch.arange(num_pairs, device=device) % num_experts
    groups = order_pairs(ids_P, range(num_experts))
    up_bf16, down_bf16 = (matrix.values.bfloat16().transpose(1, 2) for matrix in (gate_up, down))
    even_EMD = x_PD[: num_pairs // num_experts * num_experts].view(num_experts, -1, hidden)

    def check(y_PD: torch.Tensor) -> None:
        rows = torch.arange(0, num_pairs, max(1, num_pairs // 64))
        some = Scaled(x.values[rows.to(device)], None if x.scales is None else x.scales[rows.to(device)])
        expected = reference.expert_mlps(some, ids_P[rows.to(device)], gate_up, down)
        assert difference(y_PD[rows.to(device)], expected) < BOUND

    def baseline() -> torch.Tensor:
        return torch.bmm(reference.silu_and_multiply(torch.bmm(even_EMD, up_bf16)), down_bf16)

    return Trial(
        run=lambda: expert_mlps(x, groups, gate_up, down),
        check=check,
        baseline=baseline,
        baseline_name="torch.bmm in bfloat16",
    )


def _weights(num_experts: int, hidden: int, inner: int, device: str, *, float8: bool) -> tuple[Scaled, Scaled]:
    shapes = ((num_experts, 2 * inner, hidden), (num_experts, hidden, inner))
    if not float8:
        up, down = (torch.randn(s, device=device, dtype=torch.bfloat16) / s[2] ** 0.5 for s in shapes)
        return Scaled(up), Scaled(down)
    scales = (torch.full((e, n // 128, k // 128), k**-0.5, device=device) for e, n, k in shapes)
    up8, down8 = (Scaled(random_float8(s, device), scale) for s, scale in zip(shapes, scales, strict=True))
    return up8, down8


def combine_cases() -> list[Case]:
    """Answers of a decode batch and of a prefill chunk, beside those of the shared expert."""
    return [replace(_combine_case(3), tiny=True), *(_combine_case(t) for t in (128, 4096))]


def _combine_case(num_tokens: int) -> Case:
    def prepare(device: str) -> Trial:
        from kernels.moe.combine import combine_pairs

        y_PD = torch.randn(num_tokens * CHOSEN, HIDDEN, device=device, dtype=torch.bfloat16)
        beside_TD = torch.randn(num_tokens, HIDDEN, device=device, dtype=torch.bfloat16)
        weights_TK = torch.rand(num_tokens, CHOSEN, device=device)

        def check(out_TD: torch.Tensor) -> None:
            assert_same_bits(out_TD, reference.combine_pairs(y_PD, weights_TK, beside_TD).bfloat16())

        return Trial(
            run=lambda: combine_pairs(y_PD, weights_TK, beside_TD=beside_TD, dtype=torch.bfloat16),
            check=check,
            baseline=lambda: torch.einsum("tkd,tk->td", y_PD.view(num_tokens, CHOSEN, -1).float(), weights_TK),
            baseline_name="torch.einsum",
        )

    return Case(name=f"{num_tokens} tokens", moved_bytes=2 * HIDDEN * num_tokens * (CHOSEN + 2), prepare=prepare)


def parts_cases() -> list[Case]:
    """What 8 ranks gave for a decode batch."""
    return [replace(_parts_case(8, 2), tiny=True), *(_parts_case(8, t) for t in (16, 128))]


def _parts_case(num_ranks: int, num_tokens: int) -> Case:
    def prepare(device: str) -> Trial:
        from kernels.moe.combine import sum_parts

        parts_WTD = torch.randn(num_ranks, num_tokens, HIDDEN, device=device, dtype=torch.bfloat16)

        def check(out_TD: torch.Tensor) -> None:
            assert_same_bits(out_TD, reference.sum_parts(parts_WTD).bfloat16())

        return Trial(
            run=lambda: sum_parts(parts_WTD, dtype=torch.bfloat16),
            check=check,
            baseline=lambda: parts_WTD.float().sum(0).bfloat16(),
            baseline_name="torch.sum",
        )

    moved = 2 * HIDDEN * num_tokens * (num_ranks + 1)
    return Case(name=f"{num_ranks} ranks, {num_tokens} tokens", moved_bytes=moved, prepare=prepare)


def pack_cases() -> list[Case]:
    """A decode batch for 8 ranks."""
    return [replace(_pack_case(8, 2), tiny=True), *(_pack_case(8, t) for t in (16, 128))]


def _packing(num_ranks: int, num_tokens: int, device: str) -> tuple[Scaled, torch.Tensor, torch.Tensor]:
    """Rows, and ids and weights of experts that are all on two ranks."""
    codes_TD, scales_TG = (
        random_float8((num_tokens, HIDDEN), device),
        torch.rand(num_tokens, HIDDEN // 128, device=device),
    )
    ids_TK = torch.randint(0, 2 * EXPERTS // num_ranks, (num_tokens, CHOSEN), device=device)
    return Scaled(codes_TD, scales_TG), ids_TK, torch.rand(num_tokens, CHOSEN, device=device)


def _pack_case(num_ranks: int, num_tokens: int) -> Case:
    sizes = {"num_experts": EXPERTS, "num_ranks": num_ranks}

    def prepare(device: str) -> Trial:
        from kernels.moe.pack import pack_for_ranks, unpack_rows
        from kernels.moe.record import RecordLayout

        rows, ids_TK, weights_TK = _packing(num_ranks, num_tokens, device)
        expected = pack_reference.pack_for_ranks(rows, ids_TK, weights_TK, **sizes)
        layout = RecordLayout(HIDDEN, CHOSEN, float8=True)

        def check(records: torch.Tensor) -> None:
            given, wanted = (unpack_rows(one.flatten(0, 1), layout) for one in (records, expected))
            assert_same_bits(given[1], wanted[1])
            sent = (wanted[1] >= 0).any(1)
            assert_same_bits(given[0].values[sent].view(torch.uint8), wanted[0].values[sent].view(torch.uint8))

        return Trial(
            run=lambda: pack_for_ranks(rows, ids_TK, weights_TK, **sizes),
            check=check,
            baseline=lambda: pack_reference.pack_for_ranks(rows, ids_TK, weights_TK, **sizes),
            baseline_name="torch",
        )

    moved = num_tokens * HIDDEN * 3 + num_tokens * num_ranks * CHOSEN * 8
    return Case(name=f"{num_ranks} ranks, {num_tokens} tokens", moved_bytes=moved, prepare=prepare)


def unpack_cases() -> list[Case]:
    """A decode batch from 8 ranks."""
    return [replace(_unpack_case(8, 2), tiny=True), *(_unpack_case(8, t) for t in (16, 128))]


def _unpack_case(num_ranks: int, num_tokens: int) -> Case:
    def prepare(device: str) -> Trial:
        from kernels.moe.pack import unpack_rows
        from kernels.moe.record import RecordLayout

        rows, ids_TK, weights_TK = _packing(num_ranks, num_tokens, device)
        records = pack_reference.pack_for_ranks(
            rows, ids_TK, weights_TK, num_experts=EXPERTS, num_ranks=num_ranks
        ).flatten(0, 1)
        layout = RecordLayout(HIDDEN, CHOSEN, float8=True)

        def truth() -> tuple[Scaled, torch.Tensor, torch.Tensor]:
            return pack_reference.unpack_rows(records, HIDDEN, CHOSEN, float8=True)

        def check(result: tuple[Scaled, torch.Tensor, torch.Tensor]) -> None:
            for got, expected in zip(result[1:], truth()[1:], strict=True):
                assert_same_bits(got, expected)

        return Trial(run=lambda: unpack_rows(records, layout), check=check, baseline=truth, baseline_name="torch")

    moved = 2 * num_ranks * num_tokens * (HIDDEN // 128 * 4 + CHOSEN * 8)
    return Case(name=f"{num_ranks} ranks, {num_tokens} tokens", moved_bytes=moved, prepare=prepare)
