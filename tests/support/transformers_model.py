"""The same model in transformers, the independent implementation, on the same checkpoint values."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from baleen.model_spec import load_model_spec
from tests.support.models import plain_tensors


def transformers_model(directory: Path, attention: str = "eager") -> Any:
    """DeepseekV32ForCausalLM in float32 with the checkpoint's (dequantised) values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        # it would quantise again, and its reading of ragged scales is wrong
        config.pop("quantization_config", None)
        config["torch_dtype"] = "float32"
        built = DeepseekV32Config(**config)
        built._attn_implementation = attention
        model = DeepseekV32ForCausalLM(built).float().eval()
    spec = load_model_spec(directory)
    values = plain_tensors(directory)
    state = {name: value for name, value in values.items() if ".mlp.experts." not in name}
    for layer in range(spec.first_dense_layers, spec.num_layers):
        experts = f"model.layers.{layer}.mlp.experts."
        gate_up = [
            torch.cat((values[f"{experts}{e}.gate_proj.weight"], values[f"{experts}{e}.up_proj.weight"]))
            for e in range(spec.num_experts)
        ]
        state[experts + "gate_up_proj"] = torch.stack(gate_up)
        state[experts + "down_proj"] = torch.stack(
            [values[f"{experts}{e}.down_proj.weight"] for e in range(spec.num_experts)]
        )
    kept = {name: value for name, value in state.items() if not _is_extra_layer(name, spec.num_layers)}
    model.load_state_dict(kept)
    return model


def _is_extra_layer(name: str, num_layers: int) -> bool:
    """Whether a tensor belongs to a multi-token-prediction layer, which transformers does not have."""
    parts = name.split(".")
    return parts[:2] == ["model", "layers"] and int(parts[2]) >= num_layers
