"""Making small checkpoints in the real layout: config, index, shards and tokenizer, the same bytes every time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from baleen.errors import CheckpointError, ConfigError
from baleen.model_spec import QUANT_BLOCK, ModelSpec, model_spec_from_config
from baleen.text.tokenizer_files import BundledTokenizer, TokenizerFiles, tokenizer_files
from kernels.quant.weights import quantise_weight
from workers.model.checkpoint import INDEX_NAME
from workers.model.formula import Formula, formula_tensor
from workers.model.names import Kind, TensorRule, tensor_rules

StoredDtype = Literal["float32", "bfloat16", "float8"]
Values = Callable[[TensorRule], torch.Tensor]
"""The float32 values of a tensor."""

_YARN = {
    "type": "yarn",
    "rope_type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "rope_theta": 10000,
}
_TINY: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 0,
    "first_k_dense_replace": 1,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "q_lora_rank": 128,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "index_n_heads": 32,
    "index_head_dim": 128,
    "index_topk": 64,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "rope_scaling": _YARN,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny": _TINY,
    "small": _TINY
    | {
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "intermediate_size": 1024,
        "moe_intermediate_size": 256,
        "n_routed_experts": 32,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "num_attention_heads": 16,
        "q_lora_rank": 256,
        "index_topk": 256,
    },
}
"""Sizes by name, as config.json has them. Head widths are DeepSeek-V3.2's own, so the packed cache format fits them."""

_FIXED = {
    "architectures": ["DeepseekV32ForCausalLM"],
    "model_type": "deepseek_v32",
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "attention_bias": False,
    "tie_word_embeddings": False,
}
_QUANTIZATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "scale_fmt": "ue8m0",
    "weight_block_size": [QUANT_BLOCK, QUANT_BLOCK],
}
_WRITTEN = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX_NAME)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecipe:
    """What to make. config: sizes as config.json has them; fields that are the same in every V3.2 are added.

    dtype float8: linear weights are block-scaled float8, embedding, head and gate bfloat16. Norms and biases are always
    float32. tokenizer: one of those that ship with baleen, or None for a checkpoint that speaks ids only.
    """

    config: Mapping[str, Any]
    seed: int = 0
    dtype: StoredDtype = "bfloat16"
    formula: Formula = "scaled"
    num_shards: int = 2
    tokenizer: BundledTokenizer | None = "bytes"

    def full_config(self) -> dict[str, Any]:
        """The content of config.json."""
        quantisation = {"quantization_config": _QUANTIZATION} if self.dtype == "float8" else {}
        heads = {"num_key_value_heads": self.config.get("num_attention_heads")}
        sizes = {name: value for name, value in self.config.items() if name != "quantization_config"}
        return {**sizes, **_FIXED, **heads, **quantisation}


def make_checkpoint(directory: Path, recipe: CheckpointRecipe, *, overwrite: bool = False, progress: bool) -> ModelSpec:
    """Write a checkpoint into `directory`, which is created; returns its dimensions.

    overwrite: replace the checkpoint in a directory that is not empty; other files in it stay. progress: a bar on
    stderr where that is a terminal. Raises ConfigError on sizes that no model can have, a tokenizer with more ids than
    the vocabulary, or a directory that is in use.
    """

    def formula_values(rule: TensorRule) -> torch.Tensor:
        return formula_tensor(rule, formula=recipe.formula, seed=recipe.seed)

    tokenizer = _tokenizer(recipe, _spec(recipe))
    return write_checkpoint(directory, recipe, formula_values, tokenizer, overwrite=overwrite, progress=progress)


def write_checkpoint(
    directory: Path,
    recipe: CheckpointRecipe,
    values: Values,
    tokenizer: TokenizerFiles | None,
    *,
    overwrite: bool = False,
    progress: bool,
) -> ModelSpec:
    """Write a checkpoint whose tensors have the float32 `values`, with any tokenizer; else as `make_checkpoint`.

    The recipe's formula, seed and tokenizer are not looked at.
    """
    if recipe.num_shards < 1:
        raise ConfigError(f"shards is {recipe.num_shards}, must be at least 1")
    spec = _spec(recipe)
    try:
        _prepare(directory, overwrite)
        _write_json(directory / "config.json", recipe.full_config())
        generation = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 1.0, "top_p": 0.95}
        _write_json(directory / "generation_config.json", generation)
        if tokenizer is not None:
            (directory / "tokenizer.json").write_text(tokenizer.tokenizer_json, encoding="utf-8")
            (directory / "tokenizer_config.json").write_text(tokenizer.tokenizer_config_json, encoding="utf-8")
        # The index comes last: without it, a directory that was only half written is refused.
        _write_json(directory / INDEX_NAME, _write_shards(directory, spec, recipe, values, progress))
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be written: {error.strerror or error}") from error
    return spec


def _spec(recipe: CheckpointRecipe) -> ModelSpec:
    try:
        return model_spec_from_config(recipe.full_config(), source="sizes")
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def _tokenizer(recipe: CheckpointRecipe, spec: ModelSpec) -> TokenizerFiles | None:
    if recipe.tokenizer is None:
        return None
    tokenizer = tokenizer_files(recipe.tokenizer, max_length=spec.max_positions)
    if tokenizer.num_ids > spec.vocab_size:
        raise ConfigError(
            f"vocab_size is {spec.vocab_size}, the {recipe.tokenizer} tokenizer needs at least {tokenizer.num_ids}"
        )
    return tokenizer


def _prepare(directory: Path, overwrite: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if not any(directory.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{directory}: not empty; --force replaces the checkpoint in it")
    for path in [directory / name for name in _WRITTEN] + list(directory.glob("*.safetensors")):
        path.unlink(missing_ok=True)


def _write_shards(
    directory: Path, spec: ModelSpec, recipe: CheckpointRecipe, values: Values, progress: bool
) -> dict[str, Any]:
    """Write all shards, one in memory at a time; returns the index."""
    names = [name for rule in tensor_rules(spec) for name in _stored_names(rule, recipe.dtype)]
    per_shard = -(-len(names) // recipe.num_shards)
    num_shards = -(-len(names) // per_shard)
    placed: dict[str, str] = {}
    part: dict[str, torch.Tensor] = {}
    total_bytes = 0
    with tqdm(total=len(names), desc="make", unit="tensor", disable=None if progress else True) as bar:
        for name, tensor in _stored_tensors(spec, recipe.dtype, values):
            shard = f"model-{len(placed) // per_shard + 1:05d}-of-{num_shards:06d}.safetensors"
            placed[name] = shard
            part[name] = tensor
            total_bytes += tensor.nbytes
            bar.update()
            if len(placed) % per_shard == 0 or len(placed) == len(names):
                save_file(part, directory / shard, metadata={"format": "pt"})
                # safetensors leaves its files readable by their owner only.
                (directory / shard).chmod((directory / "config.json").stat().st_mode)
                part = {}
    assert list(placed) == names
    return {"metadata": {"total_size": total_bytes}, "weight_map": placed}


def _stored_names(rule: TensorRule, dtype: StoredDtype) -> tuple[str, ...]:
    return (rule.name, rule.scale_name) if rule.quantisable and dtype == "float8" else (rule.name,)


def _stored_tensors(spec: ModelSpec, dtype: StoredDtype, values: Values) -> Iterator[tuple[str, torch.Tensor]]:
    """Stored names and tensors in file order; a scale follows its weight."""
    for rule in tensor_rules(spec):
        tensor = values(rule)
        if rule.kind in (Kind.NORM, Kind.BIAS) or dtype == "float32":
            yield rule.name, tensor
        elif rule.quantisable and dtype == "float8":
            quantised, scales = quantise_weight(tensor)
            yield rule.name, quantised
            yield rule.scale_name, scales
        else:
            yield rule.name, tensor.to(torch.bfloat16)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
