"""Arithmetic of a checkpoint's sizes: parameters, bytes per rank, bytes of cache, tokens that fit. Reads no weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from baleen.blocks import BLOCK_TOKENS
from baleen.config import CacheDtype
from baleen.errors import ConfigError
from baleen.model_spec import QUANT_BLOCK, ModelSpec
from kernels.cache.layout import index_page_bytes, latent_record_bytes
from workers.model.loading import experts_of_rank
from workers.model.names import BFLOAT16, DTYPE_BYTES, FLOAT8, FLOAT32, Kind, TensorRule, tensor_rules


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What a checkpoint holds.

    parameters: of the main layers, scales left out. activated_parameters: those that one token is multiplied with, so
    its own experts only and no embedding table. skipped_parameters: of the multi-token prediction layers.
    num_tensors, num_bytes and dtype_counts take in everything stored, scales and skipped tensors too.
    """

    parameters: int
    activated_parameters: int
    skipped_parameters: int
    num_tensors: int
    num_bytes: int
    dtype_counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RankBytes:
    """Bytes of one rank's weights: in the stored dtypes with their scales, and in each compute dtype."""

    stored: int
    bfloat16: int
    float32: int


def official_dtypes(spec: ModelSpec) -> dict[str, str]:
    """Stored dtype of every tensor, scales left out, in the layout of the published checkpoint.

    Norms and biases float32, linear weights float8 where config.json has a quantization_config, the rest bfloat16.
    """
    return {rule.name: _official_dtype(rule, spec.quantised) for rule in tensor_rules(spec)}


def model_sizes(spec: ModelSpec, dtypes: Mapping[str, str]) -> ModelSizes:
    """Count the tensors of `spec` that `dtypes` (name to stored dtype, scales left out) has."""
    used = activated = skipped = num_bytes = 0
    counts: Counter[str] = Counter()
    for rule in tensor_rules(spec):
        if rule.name not in dtypes:
            continue
        dtype = dtypes[rule.name]
        counts[dtype] += 1
        if dtype == FLOAT8:
            counts[FLOAT32] += 1
        num_bytes += _stored_bytes(rule, dtype)
        if not rule.used:
            skipped += rule.num_elements
            continue
        used += rule.num_elements
        if rule.kind is not Kind.EMBEDDING and (rule.expert is None or rule.expert < spec.experts_per_token):
            # All experts have the same shapes, so the first ones stand for those that a token is sent to.
            activated += rule.num_elements
    return ModelSizes(used, activated, skipped, counts.total(), num_bytes, dict(counts))


def rank_bytes(spec: ModelSpec, dtypes: Mapping[str, str], *, world_size: int) -> RankBytes:
    """Bytes of the weights of a rank, one of `world_size`; ranks differ in which experts they hold, not in how many.

    Raises ConfigError where world_size does not divide the experts.
    """
    local_experts = experts_of_rank(spec.num_experts, rank=0, world_size=world_size)
    stored = bfloat16 = float32 = 0
    for rule in tensor_rules(spec):
        if not rule.used or (rule.expert is not None and rule.expert not in local_experts):
            continue
        stored += _stored_bytes(rule, dtypes[rule.name])
        bfloat16 += rule.num_elements * (4 if rule.float32 else 2)
        float32 += rule.num_elements * 4
    return RankBytes(stored, bfloat16, float32)


def cache_bytes_per_block(spec: ModelSpec, dtype: CacheDtype) -> int:
    """Bytes of one block of 64 tokens: latent records and index keys of all main layers.

    Raises ConfigError where the model's widths do not fit the packed float8 format.
    """
    if dtype != "float8":
        width = spec.latent_dim + spec.index_head_dim
        return spec.num_layers * BLOCK_TOKENS * width * (4 if dtype == "float32" else 2)
    if spec.kv_lora_rank % QUANT_BLOCK or spec.index_head_dim != QUANT_BLOCK:
        raise ConfigError(
            f"a float8 cache needs kv_lora_rank a multiple of {QUANT_BLOCK} and index_head_dim {QUANT_BLOCK}, "
            f"they are {spec.kv_lora_rank} and {spec.index_head_dim}"
        )
    record = latent_record_bytes(spec.kv_lora_rank, spec.qk_rope_head_dim)
    return spec.num_layers * (BLOCK_TOKENS * record + index_page_bytes(spec.index_head_dim))


def tokens_that_fit(memory_bytes: int, *, weight_bytes: int, block_bytes: int) -> int:
    """Cache tokens in whole blocks that memory holds beside the weights; 0 where the weights do not fit."""
    return max(0, memory_bytes - weight_bytes) // block_bytes * BLOCK_TOKENS


def _official_dtype(rule: TensorRule, quantised: bool) -> str:
    if rule.kind in (Kind.NORM, Kind.BIAS):
        return FLOAT32
    return FLOAT8 if rule.quantisable and quantised else BFLOAT16


def _stored_bytes(rule: TensorRule, dtype: str) -> int:
    scale_bytes = 0
    if dtype == FLOAT8:
        rows, columns = rule.scale_shape
        scale_bytes = rows * columns * DTYPE_BYTES[FLOAT32]
    return rule.num_elements * DTYPE_BYTES[dtype] + scale_bytes
