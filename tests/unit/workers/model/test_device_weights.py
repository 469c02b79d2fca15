"""Weights on a device keep the bytes of the checkpoint, and only what kernels need otherwise is multiplied out."""

import pytest
import torch

from kernels.quant.weights import dequantise_weight
from tests.support.models import golden_recipe
from tests.support.tiny_checkpoint import stored_tensors
from workers.model.checkpoint import Checkpoint
from workers.model.device_weights import weight_bytes
from workers.model.loading import device_weight_bytes, load_device_weights

CPU = torch.device("cpu")


def load(directory, **share):
    share = {"rank": 0, "world_size": 1} | share
    with Checkpoint.open(directory) as checkpoint:
        weights, times = load_device_weights(checkpoint, **share, device=CPU, progress=False)
        assert device_weight_bytes(checkpoint, **share) == weight_bytes(weights)
    return weights, times


def test_float8_stays_as_it_is_stored(golden_directory):
    directory = golden_directory("dev_fp8.golden")
    stored = stored_tensors(directory)
    weights, times = load(directory)
    spec, prefix = weights.spec, "model.layers.1."
    layer = weights.layers[1]
    projections = ("q_a_proj", "indexer.wk", "kv_a_proj_with_mqa")
    rows = torch.cat([stored[f"{prefix}self_attn.{name}.weight"].view(torch.uint8) for name in projections])
    assert torch.equal(layer.attention.qkv_a.values.view(torch.uint8), rows)
    scales = torch.cat([stored[f"{prefix}self_attn.{name}.weight_scale_inv"] for name in projections])
    assert torch.equal(layer.attention.qkv_a.scales, scales)
    experts = f"{prefix}mlp.experts.5."
    inner = spec.moe_intermediate_size
    for start, name in ((0, "gate_proj"), (inner, "up_proj")):
        found = layer.mlp.gate_up.values[5, start : start + inner]
        assert torch.equal(found.view(torch.uint8), stored[f"{experts}{name}.weight"].view(torch.uint8))
        scale = layer.mlp.gate_up.scales[5, start // 128 : (start + inner) // 128]
        assert torch.equal(scale, stored[f"{experts}{name}.weight_scale_inv"])
    assert torch.equal(layer.mlp.down.scales[5], stored[experts + "down_proj.weight_scale_inv"])
    name = f"{prefix}self_attn.kv_b_proj.weight"
    expanded = dequantise_weight(stored[name], stored[name + "_scale_inv"], dtype=torch.bfloat16)
    by_head = expanded.view(spec.num_heads, -1, spec.kv_lora_rank)
    assert torch.equal(layer.attention.w_uk, by_head[:, : spec.qk_nope_head_dim])
    assert torch.equal(layer.attention.w_uv, by_head[:, spec.qk_nope_head_dim :])
    assert times.num_bytes < weight_bytes(weights)
    gate = stored[f"{prefix}mlp.gate.weight"]
    assert gate.dtype == layer.mlp.gate.dtype == torch.bfloat16 and torch.equal(layer.mlp.gate, gate)


def test_bfloat16_has_no_scales_and_a_rank_holds_its_experts(golden_directory):
    directory = golden_directory("dev_bf16.golden")
    whole, _ = load(directory)
    assert not whole.layers[1].mlp.gate_up.is_float8 and not whole.layers[0].attention.o.is_float8
    share, _ = load(directory, rank=1, world_size=2)
    half = whole.spec.num_experts // 2
    assert share.local_experts == range(half, 2 * half)
    assert torch.equal(share.layers[2].mlp.down.values, whole.layers[2].mlp.down.values[half:])
    assert torch.equal(share.lm_head, whole.lm_head)


def test_a_gate_in_float32_is_not_rounded(golden_directory):
    directory = golden_directory("tiny_v32_golden")
    weights, _ = load(directory)
    (number, layer), *_ = [(n, one) for n, one in enumerate(weights.layers) if hasattr(one.mlp, "gate")]
    assert layer.mlp.gate.dtype == torch.float32
    assert torch.equal(layer.mlp.gate, stored_tensors(directory)[f"model.layers.{number}.mlp.gate.weight"])


@pytest.mark.parametrize("name", ["dev_fp8.golden"])
def test_a_quantised_checkpoint_takes_little_more_than_its_files(golden_directory, name):
    weights, times = load(golden_directory(name))
    assert golden_recipe(name).dtype == "float8"
    # kv_b_proj is multiplied out to bfloat16; scales and all else are as stored
    extra = weights.spec.num_layers * 2 * weights.layers[0].attention.w_uk.numel()
    assert weight_bytes(weights) - times.num_bytes <= 2 * extra
