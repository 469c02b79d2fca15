"""One switch, decided at the start: what it takes, and what it refuses with key, value and limit."""

import dataclasses
from pathlib import Path

import pytest

from baleen.config import CacheConfig, ModelConfig, RankConfig
from baleen.errors import ConfigError
from baleen.model_spec import load_model_spec
from workers.model.limits import require_widths
from workers.place import place_of

V32 = Path(__file__).parents[2] / "data" / "deepseek_v32_config.json"


def config(**model):
    cache = CacheConfig(dtype=model.pop("cache_dtype", "float8"))
    return RankConfig(model=ModelConfig(path="x", **model), cache=cache)


@pytest.fixture
def no_device(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return monkeypatch


def test_without_a_gpu_torch_computes_on_the_cpu(no_device):
    place = place_of(config())
    assert (place.implementation, str(place.device)) == ("torch", "cpu")
    no_device.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"model.kernels is 'triton', and torch finds no CUDA device"):
        place_of(config(kernels="triton", compute_dtype="bfloat16"))


def test_interpreted_kernels_are_asked_for_by_name(no_device):
    no_device.setenv("TRITON_INTERPRET", "1")
    assert place_of(config()).implementation == "torch"
    place = place_of(config(kernels="triton", compute_dtype="bfloat16"))
    assert (place.implementation, str(place.device)) == ("triton", "cpu")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "model.compute_dtype is 'float32', must be bfloat16"),
        ({"compute_dtype": "bfloat16", "cache_dtype": "float32"}, "cache.dtype is 'float32', must be float8 or bfl"),
        ({"compute_dtype": "bfloat16", "attention_form": "mha"}, "model.attention_form is 'mha', must be auto"),
    ],
)
def test_formats_that_kernels_do_not_have(no_device, fields, message):
    no_device.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ConfigError, match=message):
        place_of(config(kernels="triton", **fields))


def test_an_unknown_choice_is_refused():
    with pytest.raises(ConfigError, match=r"model.kernels is 'cuda', must be one of auto, torch, triton"):
        config(kernels="cuda")


def test_a_gpu_is_taken_unless_the_cpu_is_asked_for(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    taken = []
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    place = place_of(config(compute_dtype="bfloat16"))
    assert (place.implementation, str(place.device)) == ("triton", "cuda:0") and taken == [place.device]
    assert str(place_of(config(kernels="torch")).device) == "cpu" and len(taken) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_lora_rank": 128}, "kv_lora_rank is 128, must be 512"),
        ({"qk_rope_head_dim": 32}, "qk_rope_head_dim is 32, must be 64"),
        ({"index_heads": 65}, "65 index heads, at most 64"),
        ({"index_topk": 4096}, "index_topk is 4096, at most 2048"),
    ],
)
def test_widths_that_kernels_do_not_have(change, message):
    spec = load_model_spec(V32)
    require_widths(spec)
    with pytest.raises(ConfigError, match=message):
        require_widths(dataclasses.replace(spec, **change))
