"""The fingerprint tells checkpoints of the same shapes apart, and nothing else."""

import pytest
import torch

from tests.support.tiny_checkpoint import edit_json, edit_tensors, make_tiny
from workers.model.checkpoint import Checkpoint
from workers.model.fingerprint import fingerprint


def fingerprint_of(directory):
    with Checkpoint.open(directory) as checkpoint:
        return fingerprint(checkpoint)


def test_same_checkpoint_however_it_is_cut(tmp_path):
    one, three = make_tiny(tmp_path / "one", num_shards=1), make_tiny(tmp_path / "three", num_shards=3)
    assert fingerprint_of(one) == fingerprint_of(three)
    assert len(fingerprint_of(one)) == 16


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"dtype": "float8"}, {"formula": "flat"}, {"index_topk": 65}, {"rms_norm_eps": 1e-5}]
)
def test_other_checkpoints_differ(tmp_path, change):
    assert fingerprint_of(make_tiny(tmp_path / "a")) != fingerprint_of(make_tiny(tmp_path / "b", **change))


def test_one_number_makes_a_difference(tmp_path):
    directory = make_tiny(tmp_path)
    before = fingerprint_of(directory)

    def change(tensors):
        for name in ("model.layers.1.mlp.experts.7.down_proj.weight",):
            if name in tensors:
                tensors[name].view(torch.int16).view(-1)[-1] ^= 1

    edit_tensors(directory, change)
    assert fingerprint_of(directory) != before


def test_fields_that_do_not_change_the_model_do_not_count(tmp_path):
    directory = make_tiny(tmp_path)
    before = fingerprint_of(directory)
    edit_json(directory / "config.json", lambda config: config.update(transformers_version="9.9"))
    assert fingerprint_of(directory) == before


def test_large_checkpoints_are_sampled(tmp_path, monkeypatch):
    directory = make_tiny(tmp_path)
    with Checkpoint.open(directory) as checkpoint:
        read = []
        original = checkpoint.read
        checkpoint.read = lambda name: read.append(name) or original(name)
        monkeypatch.setattr("workers.model.fingerprint._SAMPLED_TENSORS", 10)
        monkeypatch.setattr("workers.model.fingerprint._SAMPLED_BYTES", 640)
        sampled = fingerprint(checkpoint)
    assert len(set(read)) == 10
    with Checkpoint.open(make_tiny(tmp_path / "other", seed=5)) as other:
        assert fingerprint(other) != sampled
