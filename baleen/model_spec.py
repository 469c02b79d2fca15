"""DeepSeek-V3.2's dimensions, read from a checkpoint's config.json and validated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from baleen.errors import CheckpointError

QUANT_BLOCK = 128
"""Side of a weight's scale block, and length of an activation's scale group."""


def scale_shape(rows: int, columns: int) -> tuple[int, int]:
    """Shape of the scales of a float8 matrix: one per block of 128 by 128, ragged blocks included (576 rows: 5)."""
    return -(-rows // QUANT_BLOCK), -(-columns // QUANT_BLOCK)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary embedding with YaRN, which is always applied."""

    theta: float
    factor: float
    original_max_positions: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Sizes of one model. Names follow the Hugging Face config, shortened where the field has a usual short form."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_mtp_layers: int
    first_dense_layers: int
    intermediate_size: int
    moe_intermediate_size: int
    num_experts: int
    num_shared_experts: int
    experts_per_token: int
    num_expert_groups: int
    topk_groups: int
    routed_scaling_factor: float
    norm_topk_prob: bool
    num_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    index_heads: int
    index_head_dim: int
    index_topk: int
    max_positions: int
    rms_norm_eps: float
    rope: RopeSpec
    quantised: bool
    bos_token_id: int
    eos_token_ids: tuple[int, ...]

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query: unrotated and rotated part."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Numbers in one token's latent record: latent and shared rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def num_moe_layers(self) -> int:
        """Layers with routed experts, without the MTP layer."""
        return self.num_layers - self.first_dense_layers


_REQUIRED_TEXT = {
    "model_type": "deepseek_v32",
    "hidden_act": "silu",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}


def load_model_spec(location: Path) -> ModelSpec:
    """Read and validate the `config.json` in a directory, or the config file that `location` itself is.

    Raises CheckpointError that names the field, its value and what is allowed.
    """
    path = location if location.is_file() else location / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: not found; a checkpoint directory holds config.json and safetensors files"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds {type(raw).__name__}, expected an object")
    return model_spec_from_config(raw, source=str(path))


def model_spec_from_config(raw: Mapping[str, Any], *, source: str = "config.json") -> ModelSpec:
    """Validate a config object. `source` names it in errors. Raises CheckpointError."""
    read = _Fields(raw, source)
    if "auto_map" in raw:
        raise CheckpointError(f"{source}: auto_map asks for code from the checkpoint to be run; baleen never runs it")
    for name, expected in _REQUIRED_TEXT.items():
        read.text(name, expected)
    read.fixed("attention_bias", False)
    read.fixed("tie_word_embeddings", False)
    read.fixed("moe_layer_freq", 1)
    layers = read.integer("num_hidden_layers", low=1, high=1024)
    experts = read.integer("n_routed_experts", low=1, high=65536)
    groups = read.integer("n_group", low=1, high=experts)
    if experts % groups:
        read.refuse("n_group", groups, f"a divisor of n_routed_experts ({experts})")
    topk_groups = read.integer("topk_group", low=1, high=groups)
    kept = experts // groups * topk_groups
    if groups > 1 and experts // groups < 2:
        read.refuse(
            "n_group", groups, f"at most n_routed_experts / 2 ({experts // 2}): a group is scored by its best two"
        )
    rope_dim = read.integer("qk_rope_head_dim", low=2, high=1024)
    if rope_dim % 2:
        read.refuse("qk_rope_head_dim", rope_dim, "even")
    index_dim = read.integer("index_head_dim", low=rope_dim, high=4096)
    eos = raw.get("eos_token_id", 1)
    vocab = read.integer("vocab_size", low=2, high=2**31 - 1)
    eos_ids = tuple(eos) if isinstance(eos, list) else (eos,)
    if not eos_ids or any(type(token) is not int or not 0 <= token < vocab for token in eos_ids):
        read.refuse("eos_token_id", eos, f"one or more token ids below vocab_size ({vocab})")
    return ModelSpec(
        vocab_size=vocab,
        hidden_size=read.integer("hidden_size", low=1, high=2**20),
        num_layers=layers,
        num_mtp_layers=read.integer("num_nextn_predict_layers", low=0, high=8, default=0),
        first_dense_layers=read.integer("first_k_dense_replace", low=0, high=layers),
        intermediate_size=read.integer("intermediate_size", low=1, high=2**24),
        moe_intermediate_size=read.integer("moe_intermediate_size", low=1, high=2**24),
        num_experts=experts,
        num_shared_experts=read.integer("n_shared_experts", low=0, high=64),
        experts_per_token=read.integer("num_experts_per_tok", low=1, high=kept),
        num_expert_groups=groups,
        topk_groups=topk_groups,
        routed_scaling_factor=read.number("routed_scaling_factor", low=0.0, high=1e6),
        norm_topk_prob=read.boolean("norm_topk_prob", default=True),
        num_heads=read.integer("num_attention_heads", low=1, high=4096),
        q_lora_rank=read.integer("q_lora_rank", low=1, high=2**20),
        kv_lora_rank=read.integer("kv_lora_rank", low=1, high=2**20),
        qk_nope_head_dim=read.integer("qk_nope_head_dim", low=1, high=4096),
        qk_rope_head_dim=rope_dim,
        v_head_dim=read.integer("v_head_dim", low=1, high=4096),
        index_heads=read.integer("index_n_heads", low=1, high=4096),
        index_head_dim=index_dim,
        index_topk=read.integer("index_topk", low=1, high=2**20),
        max_positions=read.integer("max_position_embeddings", low=1, high=2**24),
        rms_norm_eps=read.number("rms_norm_eps", low=0.0, high=1.0),
        rope=_rope(read),
        quantised=_quantised(read),
        bos_token_id=read.integer("bos_token_id", low=0, high=vocab - 1, default=0),
        eos_token_ids=eos_ids,
    )


def _rope(read: _Fields) -> RopeSpec:
    scaling = read.raw.get("rope_scaling", read.raw.get("rope_parameters"))
    if not isinstance(scaling, dict):
        read.refuse("rope_scaling", scaling, "an object of type yarn")
    inner = _Fields(scaling, f"{read.source}: rope_scaling")
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind != "yarn":
        inner.refuse("type", kind, "'yarn'")
    theta_home = read if "rope_theta" in read.raw else inner
    return RopeSpec(
        theta=theta_home.number("rope_theta", low=1.0, high=1e12),
        factor=inner.number("factor", low=1.0, high=1e6),
        original_max_positions=inner.integer("original_max_position_embeddings", low=1, high=2**24),
        beta_fast=inner.number("beta_fast", low=1e-6, high=1e6, default=32.0),
        beta_slow=inner.number("beta_slow", low=1e-6, high=1e6, default=1.0),
        mscale=inner.number("mscale", low=0.0, high=1e3, default=1.0),
        mscale_all_dim=inner.number("mscale_all_dim", low=0.0, high=1e3, default=1.0),
    )


def _quantised(read: _Fields) -> bool:
    section = read.raw.get("quantization_config")
    if section is None:
        return False
    if not isinstance(section, dict):
        read.refuse("quantization_config", section, "an object")
    inner = _Fields(section, f"{read.source}: quantization_config")
    inner.text("quant_method", "fp8")
    inner.text("fmt", "e4m3")
    block = section.get("weight_block_size")
    if block != [QUANT_BLOCK, QUANT_BLOCK]:
        inner.refuse("weight_block_size", block, f"[{QUANT_BLOCK}, {QUANT_BLOCK}]")
    return True


class _Fields:
    """Typed reading of one JSON object, with errors that name the field."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    def refuse(self, name: str, value: object, allowed: str) -> NoReturn:
        raise CheckpointError(f"{self.source}: {name} is {value!r}, must be {allowed}")

    def _get(self, name: str, default: Any) -> Any:
        value = self.raw.get(name, default)
        if value is None:
            raise CheckpointError(f"{self.source}: {name} is missing")
        return value

    def integer(self, name: str, *, low: int, high: int, default: int | None = None) -> int:
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.refuse(name, value, f"an integer from {low} to {high}")
        return int(value)

    def number(self, name: str, *, low: float, high: float, default: float | None = None) -> float:
        value = self._get(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            self.refuse(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
        return bool(value)

    def text(self, name: str, expected: str) -> None:
        value = self.raw.get(name, expected)
        if value != expected:
            self.refuse(name, value, repr(expected))

    def fixed(self, name: str, expected: bool | int) -> None:
        value = self.raw.get(name, expected)
        if value != expected:
            self.refuse(name, value, json.dumps(expected))
