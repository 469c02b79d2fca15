"""What a rank needs of its device's memory, counted before anything is allocated, and refused where it cannot fit."""

from __future__ import annotations

from dataclasses import dataclass

from baleen.config import EngineConfig
from baleen.errors import ConfigError
from baleen.model_spec import QUANT_BLOCK, ModelSpec
from kernels.moe.record import RecordLayout
from workers.model.attention_form import dense_bytes

GIB = 1 << 30

LIBRARY_BYTES = 1 << 30
"""Room for what CUDA, cuBLAS, NCCL and compiled kernels take on the device; not measured."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on the device. free: before the rank allocates anything. block: of one cache block."""

    weights: int
    cache: int
    workspace: int
    free: int
    block: int

    @property
    def total(self) -> int:
        """The sum of what is needed."""
        return self.weights + self.cache + self.workspace

    def text(self) -> str:
        """The sum, for reading."""
        return (
            f"weights {_gib(self.weights)} + cache {_gib(self.cache)} + workspace {_gib(self.workspace)} = "
            f"{_gib(self.total)} GiB of {_gib(self.free)} GiB that are free"
        )

    def require_fit(self) -> None:
        """Raise ConfigError, with the sum and how many blocks would fit, if it is more than is free."""
        if self.total <= self.free:
            return
        room = (self.free - self.weights - self.workspace) // self.block
        hint = f"cache.num_blocks could be {room} at most" if room > 0 else "not even without a cache"
        raise ConfigError(f"the device's memory does not hold this rank: {self.text()}; {hint}")


def workspace_bytes(spec: ModelSpec, engine: EngineConfig, *, logit_bytes: int) -> int:
    """Upper estimate of what one step allocates beside weights and cache.

    Of each token the widest tensors of a layer, those of attention and those of the experts, counted as if none were
    freed before the next; of each sampled row three copies of its logits; partial sums of attention; keys and values of
    the multi-head form. logit_bytes: of what is computed in slices, index logits and the logits of prompts.
    """
    heads = spec.num_heads
    queries = heads * spec.qk_head_dim + spec.index_heads * spec.index_head_dim
    attention = 2 * (queries + heads * (spec.latent_dim + spec.kv_lora_rank + spec.v_head_dim))
    attention += 4 * spec.index_topk + 2 * (spec.q_lora_rank + spec.latent_dim + spec.index_head_dim)
    inner = max(spec.intermediate_size, spec.experts_per_token * spec.moe_intermediate_size)
    feed_forward = 2 * inner + 2 * (spec.experts_per_token + 1) * spec.hidden_size
    stream = 12 * spec.hidden_size
    partials = 4 * 4096 * heads * spec.kv_lora_rank
    rows = engine.max_batch_tokens * (attention + feed_forward + stream)
    logits = 3 * 4 * engine.max_running * spec.vocab_size
    return rows + logits + logit_bytes + partials + dense_bytes(spec) + LIBRARY_BYTES


def exchange_bytes(spec: ModelSpec, engine: EngineConfig, *, world_size: int) -> int:
    """What one layer's exchange of records allocates in a decode step, whatever the routing: 0 for a rank alone.

    Of each of `world_size * max_running` records: itself on both ways, its scales, ids and weights unpacked, for each
    of its experts the inner row, the answer and its place, and the answer's sum on both ways.
    """
    if world_size == 1:
        return 0
    slots = spec.experts_per_token
    layout = RecordLayout(spec.hidden_size, slots, float8=False)
    unpacked = spec.hidden_size // QUANT_BLOCK * 4 + 8 * slots
    pairs = slots * (2 * spec.moe_intermediate_size + 2 * spec.hidden_size + 4)
    return world_size * engine.max_running * (2 * layout.num_bytes + unpacked + pairs + 2 * 2 * spec.hidden_size)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"
