"""What each cache format does to the model, against the plain reference that rounds the same numbers."""

import dataclasses

import pytest
import torch

from baleen.errors import ConfigError
from tests.support.golden import golden
from tests.support.models import SingleSequence, plain_tensors
from tests.support.reference_model import ReferenceModel
from workers.cache.tensors import allocate_cache

TINY = "tiny_v32_golden"


@pytest.fixture(scope="module")
def references(golden_directory, golden_weights):
    """Logits of every position from the plain reference: exact, and with what the packed cache rounds."""
    prompt = golden(TINY)["prompt"]
    spec, tensors = golden_weights(TINY).spec, plain_tensors(golden_directory(TINY))
    exact, _ = ReferenceModel(spec, tensors).forward(prompt)
    packed, _ = ReferenceModel(spec, tensors, float8_cache=True).forward(prompt)
    return exact, packed


def test_the_plain_reference_agrees_with_the_golden(references):
    expected = torch.tensor(golden(TINY)["prefill"]["logits_last"])
    assert (references[0][-1] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("form", ["mha", "absorbed"])
@pytest.mark.parametrize("chunk", [1, 8, 40])
def test_packed_cache_rounds_exactly_what_its_layout_says(golden_weights, references, form, chunk):
    exact, packed = references
    prompt = golden(TINY)["prompt"]
    sequence = SingleSequence(golden_weights(TINY), cache_dtype="float8", form=form)
    for start in range(0, 40, chunk):
        logits = sequence.feed(prompt[start : start + chunk])
        position = start + chunk - 1
        # rounding moves logits by up to 0.9 here, the same rounding elsewhere by less than a thousandth
        assert (logits - packed[position]).abs().max() < 1e-3
    assert (exact[-1] - packed[-1]).abs().max() > 0.1


def test_bfloat16_cache_keeps_logits_near(golden_weights, references):
    prompt = golden(TINY)["prompt"]
    logits = SingleSequence(golden_weights(TINY), cache_dtype="bfloat16").prefill(prompt, 8)
    assert 1e-4 < (logits - references[0][-1]).abs().max() < 0.05


def test_packed_format_refuses_models_that_do_not_fit(golden_weights):
    spec = dataclasses.replace(golden_weights(TINY).spec, kv_lora_rank=96)
    with pytest.raises(ConfigError, match="kv_lora_rank to be a multiple of 128, it is 96"):
        allocate_cache(spec, "float8", 1, hadamard_keys=False, compute_dtype=torch.float32)
    spec = dataclasses.replace(golden_weights(TINY).spec, index_head_dim=64)
    with pytest.raises(ConfigError, match="index_head_dim 128, it is 64"):
        allocate_cache(spec, "float8", 1, hadamard_keys=False, compute_dtype=torch.float32)
