"""`baleen checkpoint` as a user meets it: arguments, output and exit codes."""

import argparse
import json
from pathlib import Path

import pytest

from baleen.errors import CheckpointError, ConfigError
from cluster.commands.checkpoint import add_parser
from tests.support.golden import GOLDEN, golden
from tests.support.tiny_checkpoint import TINY_CONFIG, edit_tensors, make_tiny, shards, stored_tensors

REAL_CONFIG = Path(__file__).parents[2] / "data" / "deepseek_v32_config.json"


def checkpoint(*arguments):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["checkpoint", *map(str, arguments)])
    return args.run(args)


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps({"seed": 5, "dtype": "fp8", "config": TINY_CONFIG, "prompts": []}))
    return path


def test_make_then_verify_then_inspect(tmp_path, capsys):
    directory = tmp_path / "new"
    assert checkpoint("make", directory, "--hidden", 64, "--vocab", 300, "--shards", 3, "--dtype", "float8") == 0
    made = capsys.readouterr().out
    assert made.startswith(f"made {directory}: 2 layers, 8 experts, ")
    assert "3 shards, float8, seed 0, bytes tokenizer" in made
    assert json.loads((directory / "config.json").read_text())["hidden_size"] == 64
    assert checkpoint("verify", directory) == 0
    assert capsys.readouterr().out.startswith(f"OK {directory}: ")
    assert checkpoint("inspect", directory, "--ep", 2, "--gpu-memory-gib", 0.5) == 0
    text = capsys.readouterr().out
    assert "weights of a rank, EP 2" in text
    assert "in 0.5 GiB, weights as bfloat16" in text


def test_spec_file_gives_seed_dtype_and_sizes(tmp_path, spec_file):
    checkpoint("make", tmp_path / "a", "--spec", spec_file)
    expected = make_tiny(tmp_path / "b", seed=5, dtype="float8")
    for first, second in zip(shards(tmp_path / "a"), shards(expected), strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_flags_win_over_the_spec_file(tmp_path, spec_file, capsys):
    checkpoint("make", tmp_path / "a", "--spec", spec_file, "--seed", 6, "--dtype", "float32", "--layers", 3)
    assert "3 layers" in capsys.readouterr().out
    assert {str(tensor.dtype) for tensor in stored_tensors(tmp_path / "a").values()} == {"torch.float32"}


def test_flat_formula_from_a_golden_file(tmp_path, capsys):
    checkpoint("make", tmp_path, "--spec", GOLDEN / "tiny_v32_golden.json", "--formula", "flat", "--dtype", "float32")
    assert "float32, flat formula, no tokenizer" in capsys.readouterr().out
    assert stored_tensors(tmp_path).keys() == {name for name, _, _ in golden("tiny_v32_golden")["tensors"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--spec", "nowhere.json"], "nowhere.json: cannot be read"),
        (["--formula", "flat", "--seed", "1"], "flat formula has no seed"),
        (["--experts", "6"], "must be a divisor of n_routed_experts"),
        (["--vocab", "100", "--tokenizer", "bytes"], "vocab_size is 100"),
        (["--shards", "0"], "shards is 0"),
    ],
)
def test_make_refuses(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        checkpoint("make", tmp_path / "new", *arguments)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"config": 1}', '{"config": {}, "dtype": "int4"}', '{"config": {}, "seed": "a"}']
)
def test_make_refuses_a_spec_file_that_is_none(tmp_path, content):
    path = tmp_path / "spec.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"spec\.json"):
        checkpoint("make", tmp_path / "new", "--spec", path)


def test_make_does_not_overwrite_unless_told(tmp_path):
    make_tiny(tmp_path)
    with pytest.raises(ConfigError, match="--force"):
        checkpoint("make", tmp_path)
    assert checkpoint("make", tmp_path, "--force", "--hidden", 32, "--vocab", 300) == 0


def test_verify_lists_problems_and_exits_with_3(tmp_path, capsys):
    make_tiny(tmp_path)

    def damage(tensors):
        tensors.pop("model.norm.weight", None)
        if "lm_head.weight" in tensors:
            tensors["lm_head.weight"][0, 0] = float("nan")

    edit_tensors(tmp_path, damage)
    assert checkpoint("verify", tmp_path) == 3
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path}: 2 problems\n  model.norm.weight: missing")
    assert "lm_head.weight: 1 of" in out


def test_verify_of_a_file_that_is_cut_off(tmp_path, capsys):
    path = shards(make_tiny(tmp_path))[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert checkpoint("verify", tmp_path) == 3
    assert "truncated" in capsys.readouterr().out


def test_inspect_the_real_model_by_its_config(capsys):
    assert checkpoint("inspect", REAL_CONFIG, "--config-only", "--ep", 8, "--gpu-memory-gib", 141, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["tensors"], report["tensor_bytes"]) == (92_425, 689_471_107_200)
    assert report["parameters"] == 671_877_944_064
    float8 = report["cache"]["float8"]
    assert (float8["bytes_per_token"], float8["bytes_per_block"]) == (48_068, 48_068 * 64)
    free = 141 * 2**30 - report["weight_bytes_per_rank"]["stored"]
    assert float8["tokens_that_fit"]["stored"] == free // (48_068 * 64) * 64
    assert float8["tokens_that_fit"]["bfloat16"] == 0
    assert "shards" not in report


def test_inspect_one_cache_dtype(tmp_path, capsys):
    make_tiny(tmp_path)
    checkpoint("inspect", tmp_path, "--cache-dtype", "bfloat16", "--json")
    report = json.loads(capsys.readouterr().out)
    assert list(report["cache"]) == ["bfloat16"]
    assert report["tensors"] == len(stored_tensors(tmp_path))
    assert report["file_bytes"] == sum(path.stat().st_size for path in shards(tmp_path))


def test_inspect_says_why_a_cache_dtype_cannot_be(tmp_path, capsys):
    checkpoint("inspect", make_tiny(tmp_path, kv_lora_rank=100))
    assert "kv_lora_rank a multiple of 128" in capsys.readouterr().out


def test_inspect_needs_weights_unless_told(tmp_path):
    with pytest.raises(CheckpointError, match="neither"):
        (tmp_path / "config.json").write_text(REAL_CONFIG.read_text())
        checkpoint("inspect", tmp_path)


@pytest.mark.parametrize(
    "arguments", [["--ep", "3"], ["--ep", "0"], ["--gpu-memory-gib", "0"], ["--gpu-memory-gib", "nan"]]
)
def test_inspect_refuses(tmp_path, arguments):
    with pytest.raises(ConfigError, match=arguments[1]):
        checkpoint("inspect", make_tiny(tmp_path), *arguments)
