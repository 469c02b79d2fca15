"""Tiny checkpoints for tests: under a megabyte, made in milliseconds; and damaging them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from workers.model.checkpoint import INDEX_NAME
from workers.model.make_checkpoint import PRESETS, CheckpointRecipe, make_checkpoint

TINY_CONFIG: dict[str, Any] = {
    **PRESETS["tiny"],
    "vocab_size": 288,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
}
"""2 layers, the second with 8 experts; index heads and widths that fit the packed cache format; few numbers."""

_RECIPE_FIELDS = ("seed", "dtype", "formula", "num_shards", "tokenizer")


def make_tiny(directory: Path, **overrides: Any) -> Path:
    """Make a tiny checkpoint in `directory`; returns it.

    overrides: fields of CheckpointRecipe (seed, dtype, formula, num_shards, tokenizer), or of config.json under its
    own names.
    """
    recipe = {name: overrides.pop(name) for name in _RECIPE_FIELDS if name in overrides}
    unknown = overrides.keys() - TINY_CONFIG.keys()
    assert not unknown, unknown
    make_checkpoint(directory, CheckpointRecipe(config=TINY_CONFIG | overrides, **recipe), progress=False)
    return directory


def stored_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every stored tensor, read without baleen."""
    return {name: tensor for path in shards(directory) for name, tensor in load_file(path).items()}


def shards(directory: Path) -> list[Path]:
    """The shard files, sorted."""
    return sorted(directory.glob("*.safetensors"))


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Let `change` work on the stored tensors of each shard, and write shards and index to fit."""
    index = json.loads((directory / INDEX_NAME).read_text())
    placed = {}
    for path in shards(directory):
        tensors = load_file(path)
        change(tensors)
        path.unlink()
        save_file(tensors, path)
        placed |= dict.fromkeys(tensors, path.name)
    (directory / INDEX_NAME).write_text(json.dumps(index | {"weight_map": placed}))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let `change` work on a JSON object in a file."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
