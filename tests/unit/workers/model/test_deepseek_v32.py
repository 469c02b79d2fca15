"""The model against the goldens, inside and out: logits, top-k sets, routing and hidden states."""

import pytest
import torch

from kernels.dsa import reference as dsa
from kernels.moe import reference as moe_reference
from tests.support.golden import golden
from tests.support.models import SingleSequence, load_whole
from workers.model import deepseek_v32, moe

TINY = "tiny_v32_golden"


@pytest.mark.parametrize("form", ["auto", "mha", "absorbed"])
@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_logits_match_the_golden_ones_in_any_form_and_chunking(golden_weights, form, chunk):
    expected = golden(TINY)
    sequence = SingleSequence(golden_weights(TINY), form=form)
    logits = sequence.prefill(expected["prompt"], chunk)
    assert (logits - torch.tensor(expected["prefill"]["logits_last"])).abs().max() < 1e-4


def test_logits_in_the_middle_of_the_prompt(golden_weights):
    expected = golden(TINY)
    logits = SingleSequence(golden_weights(TINY)).prefill(expected["prompt"][:21], 21)
    assert (logits[:16] - torch.tensor(expected["prefill"]["logits_pos20_first16"])).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["dev_bf16.golden", "dev_fp8.golden"])
def test_stored_dtypes_give_the_golden_logits(golden_weights, name):
    for case in golden(name)["cases"]:
        logits = SingleSequence(golden_weights(name)).prefill(case["prompt"], 100)
        assert (logits[:32] - torch.tensor(case["logits_last_first32"])).abs().max() < 1e-4


def test_hadamard_on_both_sides_changes_nothing(golden_weights):
    prompt = golden(TINY)["prompt"]
    plain = SingleSequence(golden_weights(TINY)).prefill(prompt, 16)
    rotated = SingleSequence(golden_weights(TINY), hadamard=True).prefill(prompt, 16)
    assert (plain - rotated).abs().max() < 1e-4


@pytest.mark.parametrize(("chunk", "function"), [(40, "topk_mask"), (1, "topk_positions")])
def test_selected_keys_are_the_golden_sets(golden_weights, monkeypatch, chunk, function):
    expected = golden(TINY)
    selected = []
    original = getattr(dsa, function)

    def record(scores, k):
        chosen = original(scores, k)
        rows = [row.nonzero()[:, 0] for row in chosen] if chosen.dtype == torch.bool else list(chosen)
        selected.append([sorted(row.tolist()) for row in rows])
        return chosen

    monkeypatch.setattr(dsa, function, record)
    SingleSequence(golden_weights(TINY), form="mha").prefill(expected["prompt"], chunk)
    num_layers = len(expected["prefill"]["topk_sorted_last_token"])
    for layer in range(num_layers):
        # queries before position 16 see no more keys than they may select, and are not scored
        calls = selected[layer::num_layers]
        by_position = [keys for call in calls for keys in call]
        assert by_position[25 - 16] == expected["prefill"]["topk_sorted_pos25"][str(layer)]
        assert by_position[39 - 16] == expected["prefill"]["topk_sorted_last_token"][str(layer)]


def test_routing_is_the_golden_one(golden_weights, monkeypatch):
    expected = golden(TINY)
    chosen = []

    def record(*args, **kwargs):
        ids, weights = moe_reference.gate(*args, **kwargs)
        chosen.append(sorted(zip(ids[-1].tolist(), weights[-1].tolist(), strict=True)))
        return ids, weights

    monkeypatch.setattr(moe, "gate", record)
    SingleSequence(golden_weights(TINY)).prefill(expected["prompt"], 40)
    for layer, found in enumerate(chosen, start=1):
        wanted = expected["prefill"]["route_last_token"][str(layer)]
        assert [expert for expert, _ in found] == [expert for expert, _ in wanted]
        assert [weight for _, weight in found] == pytest.approx([weight for _, weight in wanted], abs=1e-5)
    assert len(chosen) == 3


def test_hidden_states_match_after_every_layer(golden_weights, monkeypatch):
    expected = golden(TINY)["prefill"]["hidden_after_layer_last_token_first8"]
    streams, normed = [], []
    original = deepseek_v32.add_rms_norm

    def record(delta, residual, weight, eps):
        result = original(delta, residual, weight, eps)
        normed.append(result[0][-1, :8])
        streams.append(result[1][-1, :8])
        return result

    monkeypatch.setattr(deepseek_v32, "add_rms_norm", record)
    sequence = SingleSequence(golden_weights(TINY))
    sequence.prefill(golden(TINY)["prompt"], 40)
    # the stream is summed twice per layer: after attention, and after the feed-forward part; the golden's last entry
    # is the final norm's output
    after_layers = [*streams[1:-1:2], normed[-1]]
    assert len(after_layers) == len(expected) - 1
    embedded = golden_weights(TINY).embed[golden(TINY)["prompt"][-1]][:8]
    for found, wanted in zip([embedded, *after_layers], expected, strict=True):
        assert (found - torch.tensor(wanted)).abs().max() < 1e-4


def test_bfloat16_compute_stays_near_float32(golden_directory, golden_weights):
    prompt = golden("dev_bf16.golden")["cases"][0]["prompt"]
    exact = SingleSequence(golden_weights("dev_bf16.golden")).prefill(prompt, 100)
    weights = load_whole(golden_directory("dev_bf16.golden"), torch.bfloat16)
    rounded = SingleSequence(weights, cache_dtype="bfloat16").prefill(prompt, 100)
    assert rounded.dtype == torch.float32
    # three layers of bfloat16 (8 bits) on logits of size 1 to 3
    assert 0 < (rounded - exact).abs().max() < 0.15
