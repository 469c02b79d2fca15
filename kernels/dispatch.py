"""The table of operations that the model on a device is made of, and the one switch between its fillings.

`torch`: the plain model on a CPU, which calls the PyTorch references itself. `triton`: the kernels of this table, on
a CUDA device, or interpreted on a CPU. The choice is made once, at the start of a rank; no operation falls back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from baleen.errors import ConfigError

if TYPE_CHECKING:
    from kernels.cache.reference import QueryLatent
    from kernels.moe.order import RowGroups
    from kernels.norm.rms import Normed
    from kernels.quant.scaled import Scaled

Implementation = Literal["torch", "triton"]

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """What each entry takes and gives stands in the docstring of the function of its name, in the folder named here."""

    rms_norm: Callable[..., Normed]  # norm
    write_cache: Callable[..., QueryLatent]  # cache
    prepare_queries: Callable[..., Pair]  # cache
    quantise_activations: Callable[..., Pair]  # quant
    float8_product: Callable[..., torch.Tensor]  # quant
    absorb_queries: Callable[..., torch.Tensor]  # quant
    expand_values: Callable[..., torch.Tensor]  # quant
    index_logits_decode: Callable[..., None]  # dsa
    index_logits_prefill: Callable[..., None]  # dsa
    topk: Callable[..., torch.Tensor]  # dsa
    attend_selected: Callable[..., Pair]  # dsa
    attend_paged: Callable[..., Pair]  # dsa
    attend_dense: Callable[..., Pair]  # dsa
    gate: Callable[..., Pair]  # moe
    order_pairs: Callable[..., RowGroups]  # moe
    single_group: Callable[..., RowGroups]  # moe
    contiguous_groups: Callable[..., RowGroups]  # moe
    pack_for_ranks: Callable[..., torch.Tensor]  # moe
    unpack_rows: Callable[..., tuple[Scaled, torch.Tensor, torch.Tensor]]  # moe
    rank_answers: Callable[..., torch.Tensor]  # moe
    sum_parts: Callable[..., torch.Tensor]  # moe
    expert_mlps: Callable[..., torch.Tensor]  # moe
    combine_pairs: Callable[..., torch.Tensor]  # moe


def triton_operations() -> Operations:
    """The table filled with kernels; imports triton. Where they are interpreted, the interpreter is repaired first."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        from kernels.testing import interpreter

        interpreter.install()
    from kernels.cache.queries import prepare_queries
    from kernels.cache.write import write_cache
    from kernels.dsa.attend import attend_paged, attend_selected
    from kernels.dsa.dense import attend_dense
    from kernels.dsa.logits import index_logits_decode, index_logits_prefill
    from kernels.dsa.topk import topk
    from kernels.moe.combine import combine_pairs, sum_parts
    from kernels.moe.experts import expert_mlps
    from kernels.moe.gate import gate
    from kernels.moe.order import contiguous_groups, order_pairs, single_group
    from kernels.moe.pack import pack_for_ranks, unpack_rows
    from kernels.moe.rank import rank_answers
    from kernels.norm.rms import rms_norm
    from kernels.quant.absorb import absorb_queries, expand_values
    from kernels.quant.activations import quantise_activations
    from kernels.quant.gemm import float8_product

    return Operations(
        rms_norm=rms_norm,
        write_cache=write_cache,
        prepare_queries=prepare_queries,
        quantise_activations=quantise_activations,
        float8_product=float8_product,
        absorb_queries=absorb_queries,
        expand_values=expand_values,
        index_logits_decode=index_logits_decode,
        index_logits_prefill=index_logits_prefill,
        topk=topk,
        attend_selected=attend_selected,
        attend_paged=attend_paged,
        attend_dense=attend_dense,
        gate=gate,
        order_pairs=order_pairs,
        single_group=single_group,
        contiguous_groups=contiguous_groups,
        pack_for_ranks=pack_for_ranks,
        unpack_rows=unpack_rows,
        rank_answers=rank_answers,
        sum_parts=sum_parts,
        expert_mlps=expert_mlps,
        combine_pairs=combine_pairs,
    )


def choose_implementation(asked: str) -> Implementation:
    """What a rank computes with, for model.kernels: auto takes triton where there is a CUDA device.

    Raises ConfigError for triton without a CUDA device, unless TRITON_INTERPRET=1 asks for kernels to be interpreted on
    the CPU, as tests do.
    """
    has_device = torch.cuda.is_available()
    if asked == "auto":
        return "triton" if has_device else "torch"
    if asked == "triton" and not has_device and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError("model.kernels is 'triton', and torch finds no CUDA device: use 'torch', or 'auto'")
    return "triton" if asked == "triton" else "torch"


def device_of(implementation: Implementation, rank: int) -> torch.device:
    """Where a rank computes: with triton the CUDA device of its turn among those that it can see."""
    if implementation == "torch" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", rank % torch.cuda.device_count())
