"""Every operation that has a kernel, one line each: what tests, the gate and `baleen bench kernels` go by.

Names are given as text ("module:name"), so that reading this page imports neither torch nor triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Operation:
    """One public function with a kernel behind it.

    launcher: the function; the `configs()` of its module lists every build that it can choose. reference: the PyTorch
    truth beside it. bench: a function without arguments that gives its cases (kernels/bench).
    """

    name: str
    launcher: str
    reference: str
    bench: str

    def configs(self) -> list[Any]:
        """Every `kernels.builds.Build` that the launcher can choose; imports triton."""
        return list(import_module(self.launcher.split(":")[0]).configs())


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="index_logits_decode",
        launcher="kernels.dsa.logits:index_logits_decode",
        reference="kernels.dsa.paged_reference:index_logits",
        bench="kernels.bench.dsa:logits_decode",
    ),
    Operation(
        name="index_logits_prefill",
        launcher="kernels.dsa.logits:index_logits_prefill",
        reference="kernels.dsa.paged_reference:index_logits",
        bench="kernels.bench.dsa:logits_prefill",
    ),
    Operation(
        name="topk",
        launcher="kernels.dsa.topk:topk",
        reference="kernels.dsa.paged_reference:topk_rows",
        bench="kernels.bench.dsa:topk",
    ),
    Operation(
        name="attend_selected",
        launcher="kernels.dsa.attend:attend_selected",
        reference="kernels.dsa.paged_reference:attend_slots",
        bench="kernels.bench.attention:selected",
    ),
    Operation(
        name="attend_paged",
        launcher="kernels.dsa.attend:attend_paged",
        reference="kernels.dsa.paged_reference:attend_slots",
        bench="kernels.bench.attention:paged",
    ),
    Operation(
        name="attend_dense",
        launcher="kernels.dsa.dense:attend_dense",
        reference="kernels.dsa.paged_reference:attend_dense",
        bench="kernels.bench.dense:dense",
    ),
    Operation(
        name="quantise_activations",
        launcher="kernels.quant.activations:quantise_activations",
        reference="kernels.quant.reference:quantise_activations",
        bench="kernels.bench.quant:quantise_cases",
    ),
    Operation(
        name="float8_product",
        launcher="kernels.quant.gemm:float8_product",
        reference="kernels.quant.product_reference:float8_product",
        bench="kernels.bench.quant:product_cases",
    ),
    Operation(
        name="absorb_queries",
        launcher="kernels.quant.absorb:absorb_queries",
        reference="kernels.quant.product_reference:absorb_queries",
        bench="kernels.bench.quant:absorb_cases",
    ),
    Operation(
        name="expand_values",
        launcher="kernels.quant.absorb:expand_values",
        reference="kernels.quant.product_reference:expand_values",
        bench="kernels.bench.quant:expand_cases",
    ),
    Operation(
        name="rms_norm",
        launcher="kernels.norm.rms:rms_norm",
        reference="kernels.norm.reference:add_rms_norm",
        bench="kernels.bench.rows:norm",
    ),
    Operation(
        name="write_cache",
        launcher="kernels.cache.write:write_cache",
        reference="kernels.cache.reference:write_cache",
        bench="kernels.bench.rows:cache_write",
    ),
    Operation(
        name="prepare_queries",
        launcher="kernels.cache.queries:prepare_queries",
        reference="kernels.cache.reference:prepare_queries",
        bench="kernels.bench.rows:queries",
    ),
    Operation(
        name="sample_tokens",
        launcher="kernels.sampling.sample:sample_tokens",
        reference="kernels.sampling.reference:sample_tokens",
        bench="kernels.bench.sampling:sample",
    ),
    Operation(
        name="adjust",
        launcher="kernels.sampling.adjust:adjust_",
        reference="kernels.sampling.reference:adjust_",
        bench="kernels.bench.sampling:adjust",
    ),
    Operation(
        name="gate",
        launcher="kernels.moe.gate:gate",
        reference="kernels.moe.reference:gate",
        bench="kernels.bench.moe:gate_cases",
    ),
    Operation(
        name="order_pairs",
        launcher="kernels.moe.order:order_pairs",
        reference="kernels.moe.reference:order_pairs",
        bench="kernels.bench.moe:order_cases",
    ),
    Operation(
        name="expert_mlps",
        launcher="kernels.moe.experts:expert_mlps",
        reference="kernels.moe.reference:expert_mlps",
        bench="kernels.bench.moe:expert_cases",
    ),
    Operation(
        name="combine_pairs",
        launcher="kernels.moe.combine:combine_pairs",
        reference="kernels.moe.reference:combine_pairs",
        bench="kernels.bench.moe:combine_cases",
    ),
    Operation(
        name="sum_parts",
        launcher="kernels.moe.combine:sum_parts",
        reference="kernels.moe.reference:sum_parts",
        bench="kernels.bench.moe:parts_cases",
    ),
    Operation(
        name="pack_for_ranks",
        launcher="kernels.moe.pack:pack_for_ranks",
        reference="kernels.moe.pack_reference:pack_for_ranks",
        bench="kernels.bench.moe:pack_cases",
    ),
    Operation(
        name="unpack_rows",
        launcher="kernels.moe.pack:unpack_rows",
        reference="kernels.moe.pack_reference:unpack_rows",
        bench="kernels.bench.moe:unpack_cases",
    ),
)


def resolve(name: str) -> Any:
    """The object that "module:name" stands for."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
