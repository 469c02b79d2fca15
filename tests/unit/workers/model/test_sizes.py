"""The table and the arithmetic of sizes, against the published model and against what loading really allocates."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from baleen.errors import ConfigError
from baleen.model_spec import model_spec_from_config
from tests.support.tiny_checkpoint import make_tiny, stored_tensors
from workers.model.checkpoint import Checkpoint
from workers.model.loading import load_weights
from workers.model.names import SCALE_SUFFIX, tensor_rules
from workers.model.sizes import cache_bytes_per_block, model_sizes, official_dtypes, rank_bytes, tokens_that_fit

REAL = model_spec_from_config(json.loads((Path(__file__).parents[3] / "data" / "deepseek_v32_config.json").read_text()))


def test_published_checkpoint():
    sizes = model_sizes(REAL, official_dtypes(REAL))
    assert sizes.num_tensors == 92_425
    assert sizes.num_bytes == 689_471_107_200
    assert sizes.parameters == 671_877_944_064
    assert sizes.activated_parameters == 37_477_143_296
    assert sizes.dtype_counts["F8_E4M3"] == 45_932
    scales = sum(rule.scale_shape[0] * rule.scale_shape[1] for rule in tensor_rules(REAL) if rule.quantisable)
    assert sizes.parameters + sizes.skipped_parameters + scales == 685_396_921_376


@pytest.mark.parametrize(
    ("name", "shape", "scale"),
    [
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", (576, 7168), (5, 56)),
        ("model.layers.60.self_attn.q_b_proj.weight", (24576, 1536), (192, 12)),
        ("model.layers.60.self_attn.kv_b_proj.weight", (32768, 512), (256, 4)),
        ("model.layers.2.mlp.down_proj.weight", (7168, 18432), (56, 144)),
        ("model.layers.3.mlp.experts.255.up_proj.weight", (2048, 7168), (16, 56)),
        ("model.layers.61.self_attn.indexer.wk.weight", (128, 7168), (1, 56)),
    ],
)
def test_shapes_of_the_published_table(name, shape, scale):
    (rule,) = (rule for rule in tensor_rules(REAL) if rule.name == name)
    assert (rule.shape, rule.scale_shape) == (shape, scale)
    assert rule.used == (".61." not in name)


def test_prediction_layer_is_the_skip_list():
    skipped = [rule for rule in tensor_rules(REAL) if not rule.used]
    assert all(rule.name.startswith("model.layers.61.") for rule in skipped)
    ends = {rule.name.removeprefix("model.layers.61.") for rule in skipped}
    extras = {"enorm", "hnorm", "eh_proj", "embed_tokens", "shared_head.norm", "shared_head.head"}
    assert {f"{name}.weight" for name in extras} <= ends


@pytest.mark.parametrize(("dtype", "per_token"), [("float8", 48_068), ("bfloat16", 85_888), ("float32", 171_776)])
def test_cache_of_the_published_model(dtype, per_token):
    assert cache_bytes_per_block(REAL, dtype) == 64 * per_token


def test_widths_that_do_not_fit_the_packed_cache_are_named():
    narrow = dataclasses.replace(REAL, kv_lora_rank=500, index_head_dim=64)
    with pytest.raises(ConfigError, match="500 and 64"):
        cache_bytes_per_block(narrow, "float8")
    assert cache_bytes_per_block(narrow, "bfloat16") == 64 * 61 * (564 + 64) * 2


def test_experts_are_shared_out_and_the_rest_is_not():
    dtypes = official_dtypes(REAL)
    alone, eighth = (rank_bytes(REAL, dtypes, world_size=world_size) for world_size in (1, 8))
    routed = sum(rule.num_elements for rule in tensor_rules(REAL) if rule.used and rule.expert is not None)
    assert alone.float32 == 4 * 671_877_944_064
    assert alone.float32 - eighth.float32 == 4 * routed * 7 // 8
    assert alone.bfloat16 - eighth.bfloat16 == 2 * routed * 7 // 8
    assert eighth.stored < eighth.bfloat16 < eighth.float32
    with pytest.raises(ConfigError, match="world_size is 7"):
        rank_bytes(REAL, dtypes, world_size=7)


@pytest.mark.parametrize(
    ("memory", "tokens"), [(1000, 0), (1099, 0), (1100, 64), (1299, 128), (999, 0), (1000 + 100 * 50, 50 * 64)]
)
def test_tokens_come_in_whole_blocks(memory, tokens):
    assert tokens_that_fit(memory, weight_bytes=1000, block_bytes=100) == tokens


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8"])
def test_arithmetic_agrees_with_files_and_memory(tmp_path, dtype):
    directory = make_tiny(tmp_path, dtype=dtype, num_nextn_predict_layers=1)
    stored = stored_tensors(directory)
    with Checkpoint.open(directory) as checkpoint:
        spec = checkpoint.spec
        dtypes = {name: tensor.dtype for name, tensor in checkpoint.tensors.items() if not name.endswith(SCALE_SUFFIX)}
        sizes = model_sizes(spec, dtypes)
        assert sizes.num_tensors == len(stored)
        assert sizes.num_bytes == sum(tensor.nbytes for tensor in stored.values())
        predicted = rank_bytes(spec, dtypes, world_size=4)
        for compute_dtype, expected in ((torch.float32, predicted.float32), (torch.bfloat16, predicted.bfloat16)):
            weights, times = load_weights(checkpoint, rank=3, world_size=4, compute_dtype=compute_dtype, progress=False)
            assert memory_of(weights) == expected
            assert times.num_bytes == predicted.stored
    if dtype != "float32":
        assert official_dtypes(spec) == dtypes


def memory_of(part):
    if isinstance(part, torch.Tensor):
        return part.nbytes
    if isinstance(part, tuple):
        return sum(memory_of(inner) for inner in part)
    if dataclasses.is_dataclass(part):
        return sum(memory_of(getattr(part, field.name)) for field in dataclasses.fields(part))
    return 0
