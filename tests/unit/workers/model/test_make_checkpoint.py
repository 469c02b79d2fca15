"""Made checkpoints: the formula's numbers, the same bytes every time, and refusals that name the value."""

import hashlib
import json
import math
import zlib

import pytest
import torch

from baleen.errors import ConfigError
from tests.support.golden import golden
from tests.support.tiny_checkpoint import TINY_CONFIG, make_tiny, shards, stored_tensors
from workers.model.formula import formula_tensor
from workers.model.make_checkpoint import PRESETS, CheckpointRecipe, make_checkpoint
from workers.model.names import Kind, TensorRule

# First 32 hexadecimal digits of the SHA-256 of the stored bytes, from an independent program for the same formula.
DIGESTS = {
    "dev_bf16.golden": {
        "model.embed_tokens.weight": "01dc7e58345b405545c99c899b9fea5e",
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": "67a18a38ecd5c3127687bbd689881652",
        "model.layers.1.self_attn.indexer.k_norm.bias": "4cb5e19f5a599959d1821b4920f5c0d4",
        "model.layers.2.mlp.experts.31.down_proj.weight": "740e6e6729c56186bc02a75768f48cc7",
        "model.layers.2.mlp.gate.weight": "39eb35aa877dce7a619ab45270229441",
        "lm_head.weight": "1d436ff2b50e73871b51d165fab2e479",
    },
    "dev_fp8.golden": {
        "model.embed_tokens.weight": "4f6f58da7e58b123f4c7bb0d62f4db34",
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": "a32a233fb9143aed86bb7a70b9fce9c8",
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv": "236b3cceb52b483788b0277f33820698",
        "model.layers.1.self_attn.indexer.k_norm.bias": "6671881b87067a0deae0012c5ec24bdc",
        "model.layers.2.mlp.experts.31.down_proj.weight": "4f28560de0594d340e259733c71fb2e5",
        "model.layers.2.mlp.gate.weight": "59741225e93eac1a633a9c0406005224",
        "lm_head.weight": "c5b099e795c4c394bf195878b4595b36",
    },
}


def by_hand(salted, index, base, amplitude):
    """One number of the formula, in plain integers."""
    h = (index * 2654435761 + zlib.crc32(salted.encode())) % 2**32
    h ^= h >> 16
    h = h * 2246822519 % 2**32
    h ^= h >> 13
    h = h * 3266489917 % 2**32
    h ^= h >> 16
    return torch.tensor(base + amplitude * (h / 2**31 - 1), dtype=torch.float32).item()


@pytest.mark.parametrize(
    ("kind", "base", "scaled", "flat"),
    [
        (Kind.NORM, 1.0, 0.2, 0.2),
        (Kind.BIAS, 0.0, 0.1, 0.1),
        (Kind.EMBEDDING, 0.0, 1.0, 0.12),
        (Kind.WEIGHT, 0.0, 2 / math.sqrt(1250), 0.12),
    ],
)
def test_formula_number_by_number(kind, base, scaled, flat):
    rule = TensorRule("some.name", (1000, 1250), kind)
    for formula, salted, amplitude in (("scaled", "9:some.name", scaled), ("flat", "some.name", flat)):
        values = formula_tensor(rule, formula=formula, seed=9).view(-1)
        for index in (0, 1, 2, 4095, 2**20 - 1, 2**20, 1_249_999):
            assert values[index].item() == by_hand(salted, index, base, amplitude)


@pytest.mark.parametrize("name", DIGESTS)
def test_golden_checkpoints_come_out_bit_for_bit(tmp_path, name):
    spec = golden(name)["spec"]
    dtype = "float8" if spec["dtype"] == "fp8" else spec["dtype"]
    make_checkpoint(tmp_path, CheckpointRecipe(config=spec["config"], seed=spec["seed"], dtype=dtype), progress=False)
    stored = stored_tensors(tmp_path)
    found = {
        tensor: hashlib.sha256(stored[tensor].view(torch.uint8).numpy().tobytes()).hexdigest()[:32]
        for tensor in DIGESTS[name]
    }
    assert found == DIGESTS[name]


def test_flat_golden_has_the_listed_tensors(tmp_path):
    listed = golden("tiny_v32_golden")
    recipe = CheckpointRecipe(config=listed["config"], dtype="float32", formula="flat", tokenizer=None)
    make_checkpoint(tmp_path, recipe, progress=False)
    assert {name: list(tensor.shape) for name, tensor in stored_tensors(tmp_path).items()} == {
        name: shape for name, shape, _ in listed["tensors"]
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8"])
def test_same_recipe_gives_the_same_bytes(tmp_path, dtype):
    first, second = (make_tiny(tmp_path / name, dtype=dtype, seed=4) for name in "ab")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_seed_changes_every_tensor(tmp_path):
    first, second = (stored_tensors(make_tiny(tmp_path / str(seed), seed=seed)) for seed in (1, 2))
    assert all(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("num_shards", [1, 2, 5, 1000])
def test_shards(tmp_path, num_shards):
    directory = make_tiny(tmp_path, num_shards=num_shards)
    names = [path.name for path in shards(directory)]
    num_tensors = len(stored_tensors(directory))
    assert len(names) == min(num_shards, num_tensors)
    assert names[-1] == f"model-{len(names):05d}-of-{len(names):06d}.safetensors"
    modes = {path.stat().st_mode & 0o777 for path in directory.iterdir()}
    assert len(modes) == 1, "all files are as readable as each other"


def test_config_files(tmp_path):
    directory = make_tiny(tmp_path, dtype="float8", tokenizer="bytes")
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV32ForCausalLM"]
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    assert config["num_key_value_heads"] == config["num_attention_heads"]
    assert json.loads((directory / "generation_config.json").read_text())["eos_token_id"] == 1
    assert json.loads((directory / "tokenizer.json").read_text())["model"]["type"] == "BPE"


def test_without_a_tokenizer(tmp_path):
    directory = make_tiny(tmp_path, tokenizer=None)
    assert not list(directory.glob("tokenizer*"))


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_can_be_sharded_and_packed(preset):
    config = PRESETS[preset]
    assert config["n_routed_experts"] % 8 == 0
    assert (config["kv_lora_rank"], config["qk_rope_head_dim"], config["index_head_dim"]) == (512, 64, 128)
    assert config["vocab_size"] >= 2048


def test_default_preset_is_a_few_megabytes(tmp_path):
    make_checkpoint(tmp_path, CheckpointRecipe(config=PRESETS["tiny"], dtype="float8"), progress=False)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 8_000_000


def test_tiny_test_checkpoint_is_below_a_megabyte(tmp_path):
    assert sum(path.stat().st_size for path in make_tiny(tmp_path).iterdir()) < 1_000_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"n_group": 3}, "n_group is 3"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"vocab_size": 280}, "vocab_size is 280, the bytes tokenizer needs at least 281"),
        ({"tokenizer": "text"}, "vocab_size is 288, the text tokenizer needs at least 2048"),
        ({"num_shards": 0}, "shards is 0"),
    ],
)
def test_impossible_recipes_are_refused_and_nothing_is_written(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make_tiny(tmp_path / "new", **overrides)
    assert not (tmp_path / "new").exists()


def test_directory_in_use_is_refused_unless_told(tmp_path):
    make_tiny(tmp_path, num_shards=4)
    (tmp_path / "notes.txt").write_text("mine")
    recipe = CheckpointRecipe(config=TINY_CONFIG, num_shards=1, tokenizer=None)
    with pytest.raises(ConfigError, match="not empty"):
        make_checkpoint(tmp_path, recipe, progress=False)
    assert len(shards(tmp_path)) == 4
    make_checkpoint(tmp_path, recipe, overwrite=True, progress=False)
    assert len(shards(tmp_path)) == 1
    assert not (tmp_path / "tokenizer.json").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: cannot be written"):
        make_tiny(tmp_path / "file")
