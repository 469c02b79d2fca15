"""What the kernels are made for, known without importing them."""

from __future__ import annotations

from baleen.errors import ConfigError
from baleen.model_spec import QUANT_BLOCK, ModelSpec

INDEX_HEADS = 64
"""Index heads of the kernels; a model with fewer has them filled up with heads that weigh nothing."""

LOGIT_BYTES = 256 << 20
"""Most memory of index logits at a time; the queries of a long prompt are scored in parts."""


def require_widths(spec: ModelSpec) -> None:
    """Raise ConfigError, which names field, value and limit, on a model that the kernels are not made for."""
    for name, value, allowed in (
        ("kv_lora_rank", spec.kv_lora_rank, 512),
        ("qk_rope_head_dim", spec.qk_rope_head_dim, 64),
        ("index_head_dim", spec.index_head_dim, QUANT_BLOCK),
    ):
        if value != allowed:
            raise ConfigError(f"the model's {name} is {value}, must be {allowed} with model.kernels triton")
    if spec.index_heads > INDEX_HEADS:
        raise ConfigError(f"the model has {spec.index_heads} index heads, at most {INDEX_HEADS} with Triton kernels")
    if spec.index_topk > 2048:
        raise ConfigError(f"the model's index_topk is {spec.index_topk}, at most 2048 with Triton kernels")
