"""Opening: index, shards and headers must agree, and every way in which they do not is named."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from baleen.errors import CheckpointError
from tests.support.tiny_checkpoint import edit_json, make_tiny, shards, stored_tensors
from workers.model.checkpoint import INDEX_NAME, SINGLE_NAME, Checkpoint

NORM = "model.norm.weight"


@pytest.fixture
def directory(tmp_path):
    return make_tiny(tmp_path / "checkpoint")


def refuses(directory, *parts):
    """Opening fails, and the message has all the parts."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory).close()
    message = str(caught.value)
    assert all(part in message for part in parts), message


def edit_index(directory, change):
    edit_json(directory / INDEX_NAME, lambda index: change(index["weight_map"]))


def test_every_stored_tensor_is_found_and_read(directory):
    expected = stored_tensors(directory)
    with Checkpoint.open(directory) as checkpoint:
        assert checkpoint.tensors.keys() == expected.keys()
        assert sorted(checkpoint.names_in_file_order()) == sorted(expected)
        assert checkpoint.shard_names == tuple(path.name for path in shards(directory))
        assert len(checkpoint.shard_names) == 2
        for name, tensor in expected.items():
            assert checkpoint.tensors[name].shape == tuple(tensor.shape)
            assert torch.equal(checkpoint.read(name), tensor)
    assert checkpoint.open_s > 0


def test_one_file_needs_no_index(directory):
    tensors = stored_tensors(directory)
    for path in [*shards(directory), directory / INDEX_NAME]:
        path.unlink()
    save_file(tensors, directory / SINGLE_NAME)
    with Checkpoint.open(directory) as checkpoint:
        assert checkpoint.tensors.keys() == tensors.keys()


def test_missing_weights(directory):
    for path in [*shards(directory), directory / INDEX_NAME]:
        path.unlink()
    refuses(directory, str(directory), INDEX_NAME, SINGLE_NAME)


def test_missing_directory(tmp_path):
    refuses(tmp_path / "nowhere", "nowhere/config.json", "not found")


def test_missing_shard(directory):
    second = shards(directory)[1]
    second.unlink()
    refuses(directory, str(second), "not found", "the index lists it")


@pytest.mark.parametrize("missing", [1, 4096])
def test_truncated_shard(directory, missing):
    path = shards(directory)[0]
    size = path.stat().st_size
    os.truncate(path, size - missing)
    refuses(directory, str(path), "truncated", f"{size - missing} bytes", f"expects {size}")


@pytest.mark.parametrize("size", [0, 7, 100])
def test_shard_truncated_in_its_header(directory, size):
    path = shards(directory)[0]
    os.truncate(path, size)
    refuses(directory, str(path), "truncated", f"{size} bytes")


def test_shard_with_bytes_behind_its_data(directory):
    path = shards(directory)[0]
    with path.open("ab") as file:
        file.write(b"tail")
    refuses(directory, str(path), "damaged", f"expects {path.stat().st_size - 4}")


@pytest.mark.parametrize("content", [b"not a checkpoint, just words", (10).to_bytes(8, "little") + b"[1, 2, 3]  "])
def test_shard_that_is_no_safetensors_file(directory, content):
    path = shards(directory)[1]
    path.write_bytes(content)
    refuses(directory, str(path), "not a safetensors file")


def test_pickle_in_a_shard_s_clothes_is_not_unpickled(directory, tmp_path):
    path = shards(directory)[0]
    path.write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    refuses(directory, str(path), "pickle", "convert")
    torch.save({"weight": torch.zeros(2)}, path)
    refuses(directory, str(path), "pickle", "convert")
    assert not (tmp_path / "exploded").exists()


class _Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "weights.pth"])
def test_pickle_files_instead_of_safetensors(directory, name):
    for path in [*shards(directory), directory / INDEX_NAME]:
        path.unlink()
    (directory / name).write_bytes(b"PK\x03\x04")
    refuses(directory, name, "pickle", "convert")


def test_pickle_files_beside_safetensors_are_left_alone(directory, tmp_path):
    (directory / "optimizer.bin").write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    Checkpoint.open(directory).close()
    assert not (tmp_path / "exploded").exists()


def test_index_that_points_to_a_pickle(directory):
    edit_index(directory, lambda placed: placed.update({NORM: "pytorch_model.bin"}))
    refuses(directory, INDEX_NAME, NORM, "pytorch_model.bin", "pickle")


@pytest.mark.parametrize(
    "shard", ["../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors", "model.gguf"]
)
def test_index_that_points_elsewhere(directory, shard):
    edit_index(directory, lambda placed: placed.update({NORM: shard}))
    refuses(directory, INDEX_NAME, NORM, shard)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_index_that_is_no_index(directory, content):
    (directory / INDEX_NAME).write_text(content)
    refuses(directory, INDEX_NAME)


def test_listed_tensor_that_is_not_in_its_shard(directory):
    first = shards(directory)[0].name
    edit_index(directory, lambda placed: placed.update({"model.layers.9.extra": first}))
    refuses(directory, "model.layers.9.extra", "not found in " + first)


def test_tensor_that_the_index_does_not_list(directory):
    edit_index(directory, lambda placed: placed.pop(NORM))
    refuses(directory, NORM, shards(directory)[1].name, "the index does not list it")


def test_tensor_in_another_shard_than_listed(directory):
    first, second = (path.name for path in shards(directory))
    edit_index(directory, lambda placed: placed.update({NORM: first}))
    refuses(directory, f"{NORM}: found in {second}, the index places it in {first}", f"not found in {first}")


def test_tensor_that_is_stored_twice(directory):
    first, second = shards(directory)
    tensors = load_file(first)
    tensors[NORM] = load_file(second)[NORM]
    first.unlink()
    save_file(tensors, first)
    refuses(directory, f"{NORM}: found in {first.name}, the index places it in {second.name}")


def test_many_problems_are_counted_and_the_first_are_listed(directory):
    edit_index(directory, lambda placed: placed.clear() or placed.update({NORM: shards(directory)[1].name}))
    edit_index(directory, lambda placed: placed.update({"unknown": shards(directory)[0].name}))
    num_tensors = len(stored_tensors(directory))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{directory}: {num_tensors} problems"
    assert len(lines) == 22
    assert lines[-1] == f"  and {num_tensors - 20} more"


def test_config_that_asks_for_code(directory):
    edit_json(directory / "config.json", lambda config: config.update(auto_map={"AutoModel": "x.Y"}))
    refuses(directory, "config.json", "auto_map")


def test_config_of_another_model(directory):
    edit_json(directory / "config.json", lambda config: config.update(model_type="llama"))
    refuses(directory, "model_type", "llama", "deepseek_v32")


def test_closing_lets_the_files_go(directory):
    with Checkpoint.open(directory) as checkpoint:
        assert _mapped(directory) > 0
        checkpoint.read(NORM)
    assert _mapped(directory) == 0
    assert checkpoint.tensors, "what the headers said is still known"


def test_nothing_stays_open_after_a_refusal(directory):
    edit_index(directory, lambda placed: placed.pop(NORM))
    refuses(directory, NORM)
    assert _mapped(directory) == 0


def _mapped(directory):
    with open("/proc/self/maps") as maps:
        return sum(str(directory) in line for line in maps)


def test_index_of_the_real_layout_is_understood(directory):
    index = json.loads((directory / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored_tensors(directory).values())
