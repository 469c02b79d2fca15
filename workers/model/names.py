"""The written table of a DeepSeek-V3.2 checkpoint: every tensor's name, shape, meaning and place. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from baleen.model_spec import ModelSpec, scale_shape

FLOAT8 = "F8_E4M3"
BFLOAT16 = "BF16"
FLOAT32 = "F32"
DTYPE_BYTES = {FLOAT8: 1, BFLOAT16: 2, FLOAT32: 4}
"""The dtypes that may be stored, as safetensors names them, and the bytes of one number."""

WEIGHT_SUFFIX = ".weight"
SCALE_SUFFIX = ".weight_scale_inv"


class Kind(Enum):
    """What a tensor is to the model."""

    EMBEDDING = "embedding"
    WEIGHT = "weight"
    NORM = "norm"
    BIAS = "bias"


@dataclass(frozen=True, slots=True)
class TensorRule:
    """One expected tensor.

    quantisable: may be stored as float8 with a scale companion. float32: stays float32 in memory, whatever the compute
    dtype. expert: the routed expert it belongs to; only the rank that holds this expert loads it. used: False puts it
    on the skip list: it may be in the checkpoint, and this model never reads it (the multi-token prediction layers).
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    quantisable: bool = False
    float32: bool = False
    expert: int | None = None
    used: bool = True

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes that may be stored."""
        return (FLOAT8, BFLOAT16, FLOAT32) if self.quantisable else (BFLOAT16, FLOAT32)

    @property
    def num_elements(self) -> int:
        """Numbers in the tensor."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def scale_name(self) -> str:
        """Name of the scale companion that a float8 tensor has."""
        assert self.quantisable and self.name.endswith(WEIGHT_SUFFIX), self.name
        return self.name.removesuffix(WEIGHT_SUFFIX) + SCALE_SUFFIX

    @property
    def scale_shape(self) -> tuple[int, int]:
        """Shape of the scale companion: blocks of 128 by 128, ragged ones included."""
        rows, columns = self.shape
        return scale_shape(rows, columns)


def tensor_rules(spec: ModelSpec) -> Iterator[TensorRule]:
    """Every tensor of a checkpoint, scales left out: main layers in file order, then the skip list."""
    width = spec.hidden_size
    yield TensorRule("model.embed_tokens.weight", (spec.vocab_size, width), Kind.EMBEDDING)
    for layer in range(spec.num_layers):
        yield from _layer(spec, layer, used=True)
    yield TensorRule("model.norm.weight", (width,), Kind.NORM, float32=True)
    yield TensorRule("lm_head.weight", (spec.vocab_size, width), Kind.WEIGHT)
    for layer in range(spec.num_layers, spec.num_layers + spec.num_mtp_layers):
        yield from _layer(spec, layer, used=False)
        yield from _prediction_extras(spec, layer)


def layer_prefix(layer: int) -> str:
    """What the names of a layer's tensors start with."""
    return f"model.layers.{layer}."


def _layer(spec: ModelSpec, layer: int, *, used: bool) -> Iterator[TensorRule]:
    prefix, width = layer_prefix(layer), spec.hidden_size
    yield _norm(prefix + "input_layernorm.weight", width, used)
    yield _norm(prefix + "post_attention_layernorm.weight", width, used)
    yield from _attention(spec, prefix + "self_attn.", used=used)
    if layer < spec.first_dense_layers:
        yield from _mlp(prefix + "mlp.", width, spec.intermediate_size, used=used)
        return
    gate = prefix + "mlp.gate."
    yield TensorRule(gate + "weight", (spec.num_experts, width), Kind.WEIGHT, float32=True, used=used)
    yield TensorRule(gate + "e_score_correction_bias", (spec.num_experts,), Kind.BIAS, float32=True, used=used)
    inner = spec.moe_intermediate_size
    for expert in range(spec.num_experts):
        yield from _mlp(f"{prefix}mlp.experts.{expert}.", width, inner, expert=expert, used=used)
    if spec.num_shared_experts:
        yield from _mlp(prefix + "mlp.shared_experts.", width, inner * spec.num_shared_experts, used=used)


def _attention(spec: ModelSpec, prefix: str, *, used: bool) -> Iterator[TensorRule]:
    width, heads = spec.hidden_size, spec.num_heads
    index_width = spec.index_heads * spec.index_head_dim
    yield _linear(prefix + "q_a_proj.weight", spec.q_lora_rank, width, used=used)
    yield _norm(prefix + "q_a_layernorm.weight", spec.q_lora_rank, used)
    yield _linear(prefix + "q_b_proj.weight", heads * spec.qk_head_dim, spec.q_lora_rank, used=used)
    yield _linear(prefix + "kv_a_proj_with_mqa.weight", spec.latent_dim, width, used=used)
    yield _norm(prefix + "kv_a_layernorm.weight", spec.kv_lora_rank, used)
    key_value_width = heads * (spec.qk_nope_head_dim + spec.v_head_dim)
    yield _linear(prefix + "kv_b_proj.weight", key_value_width, spec.kv_lora_rank, used=used)
    yield _linear(prefix + "o_proj.weight", width, heads * spec.v_head_dim, used=used)
    yield _linear(prefix + "indexer.wq_b.weight", index_width, spec.q_lora_rank, used=used)
    yield _linear(prefix + "indexer.wk.weight", spec.index_head_dim, width, used=used)
    yield _norm(prefix + "indexer.k_norm.weight", spec.index_head_dim, used)
    yield TensorRule(prefix + "indexer.k_norm.bias", (spec.index_head_dim,), Kind.BIAS, float32=True, used=used)
    weights_shape = (spec.index_heads, width)
    yield TensorRule(prefix + "indexer.weights_proj.weight", weights_shape, Kind.WEIGHT, float32=True, used=used)


def _mlp(prefix: str, width: int, inner: int, *, used: bool, expert: int | None = None) -> Iterator[TensorRule]:
    yield _linear(prefix + "gate_proj.weight", inner, width, expert=expert, used=used)
    yield _linear(prefix + "up_proj.weight", inner, width, expert=expert, used=used)
    yield _linear(prefix + "down_proj.weight", width, inner, expert=expert, used=used)


def _prediction_extras(spec: ModelSpec, layer: int) -> Iterator[TensorRule]:
    """What a multi-token prediction layer has beside an ordinary layer's tensors."""
    prefix, width, table = layer_prefix(layer), spec.hidden_size, (spec.vocab_size, spec.hidden_size)
    yield TensorRule(prefix + "embed_tokens.weight", table, Kind.EMBEDDING, used=False)
    yield _norm(prefix + "enorm.weight", width, False)
    yield _norm(prefix + "hnorm.weight", width, False)
    yield TensorRule(prefix + "eh_proj.weight", (width, 2 * width), Kind.WEIGHT, used=False)
    yield _norm(prefix + "shared_head.norm.weight", width, False)
    yield TensorRule(prefix + "shared_head.head.weight", table, Kind.WEIGHT, used=False)


def _linear(name: str, rows: int, columns: int, *, used: bool, expert: int | None = None) -> TensorRule:
    return TensorRule(name, (rows, columns), Kind.WEIGHT, quantisable=True, expert=expert, used=used)


def _norm(name: str, width: int, used: bool) -> TensorRule:
    return TensorRule(name, (width,), Kind.NORM, float32=True, used=used)
