"""What `baleen bench layer` times, run on the CPU with references in the table: every operation, once where it is."""

import itertools

import pytest
import torch

from baleen.model_spec import model_spec_from_config
from tests.support.models import golden_recipe
from workers.cache.device_tensors import DeviceCache
from workers.model.device_experts import experts_over
from workers.model.layer_bench import (
    LayerShape,
    LayerTime,
    Recorder,
    fill_cache,
    layer_spec,
    random_weights,
    shape_batch,
    table_of,
)
from workers.parallel.local import LocalExchange
from workers.staging import Staging

pytest.importorskip("triton", reason="triton is not installed on this platform")

CPU = torch.device("cpu")
LATENT = ("absorb_queries", "expand_values")


@pytest.mark.parametrize(
    ("shape", "attention"),
    [
        (LayerShape("decode", 2, 1, 100), ("index_logits_decode", "topk", "attend_selected", *LATENT)),
        (LayerShape("prefill", 1, 3, 100), ("index_logits_prefill", "topk", "attend_selected", *LATENT)),
        (LayerShape("short", 1, 3, 64), ("attend_paged", *LATENT)),
        (LayerShape("short prompts", 2, 64, 64), ("attend_dense",)),
    ],
)
def test_a_step_of_one_layer_is_accounted_for_by_operation(shape, attention):
    from tests.support.reference_operations import reference_operations
    from workers.model.device_model import DeviceModel

    spec = layer_spec(model_spec_from_config(golden_recipe("dev_fp8.golden").full_config()), 16)
    weights = random_weights(spec, CPU)
    assert len(weights.layers) == 1 and weights.layers[0].mlp.gate_up.is_float8
    cache = DeviceCache(spec, 2 * shape.num_sequences, "float8", CPU)
    fill_cache(cache)
    clock = itertools.count()
    recorder = Recorder(lambda: next(clock), lambda begin, end: float(end - begin))
    operations = recorder.wrap(reference_operations())
    model = DeviceModel(weights, cache, experts_over(LocalExchange(16), operations), operations)
    step = shape_batch(shape, spec, Staging(CPU))
    assert step.num_tokens == shape.num_sequences * shape.new_tokens and step.most_context == shape.context
    logits = model.forward(step)
    assert bool(logits.isfinite().all())
    calls = recorder.take()
    expected = {"rms_norm": 3, "write_cache": 1, "prepare_queries": 1}
    expected |= {"float8_product": 3, "quantise_activations": 1, "gate": 1, "order_pairs": 1, "combine_pairs": 1}
    expected |= {"single_group": 1, "expert_mlps": 2}
    expected |= dict.fromkeys(attention, 1)
    assert calls == expected
    assert recorder.take() == {}


def test_the_table_states_what_it_takes_for_granted():
    spec = layer_spec(model_spec_from_config(golden_recipe("dev_fp8.golden").full_config()), 16)
    time = LayerTime(LayerShape("decode", 1, 1, 64), 1000.0, {"gate": 100.0, "expert_mlps": 650.0})
    text = table_of([time], spec, 61)
    assert "decode: 1,000 us a layer, 61 layers 61.00 ms" in text
    lines = text.splitlines()
    assert lines[1].split() == ["expert_mlps", "650.0", "us"] and lines[3].split() == ["other", "250.0", "us"]
    assert "16 experts" in lines[-1] and "dense layers counted as such, no exchange between ranks" in lines[-1]
