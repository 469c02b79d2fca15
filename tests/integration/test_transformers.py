"""The model beside transformers' on sizes that no golden has, in every chunking and form."""

import pytest
import torch

from tests.support.models import SingleSequence, load_whole
from tests.support.transformers_model import transformers_model
from workers.model.make_checkpoint import CheckpointRecipe, make_checkpoint

pytestmark = pytest.mark.slow

SCALING = {
    "type": "yarn",
    "rope_type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "rope_theta": 10000,
}
BASE = {
    "vocab_size": 320,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "intermediate_size": 160,
    "moe_intermediate_size": 48,
    "n_routed_experts": 12,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 3,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "num_attention_heads": 3,
    "q_lora_rank": 48,
    "kv_lora_rank": 80,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 64,
    "v_head_dim": 40,
    "index_n_heads": 32,
    "index_head_dim": 128,
    "index_topk": 24,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": SCALING,
}
SIZES = {
    "ungrouped": {"n_group": 1, "topk_group": 1},
    "no-dense-layer": {"first_k_dense_replace": 0, "num_hidden_layers": 2},
    "two-shared-experts": {"n_shared_experts": 2, "norm_topk_prob": False, "routed_scaling_factor": 1.0},
    "all-groups-kept": {"topk_group": 3, "num_experts_per_tok": 5},
    "ragged-float8": {"kv_lora_rank": 128, "hidden_size": 320, "q_lora_rank": 192},
    "wide-index": {"index_n_heads": 64, "index_topk": 8, "v_head_dim": 16},
}


@pytest.mark.parametrize("name", SIZES)
def test_logits_are_those_of_transformers(name, tmp_path):
    dtype = "float8" if name == "ragged-float8" else "float32"
    recipe = CheckpointRecipe(config={**BASE, **SIZES[name]}, seed=5, dtype=dtype, tokenizer=None)
    make_checkpoint(tmp_path / name, recipe, progress=False)
    prompt = torch.randint(3, 320, (90,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        expected = transformers_model(tmp_path / name)(torch.tensor([prompt])).logits[0]
    weights = load_whole(tmp_path / name)
    for form, chunk in [("auto", 90), ("mha", 30), ("absorbed", 18), ("auto", 3), ("auto", 1)]:
        sequence = SingleSequence(weights, form=form)
        for start in range(0, 90, chunk):
            logits = sequence.feed(prompt[start : start + chunk])
            assert (logits - expected[start + chunk - 1]).abs().max() < 1e-4, (form, chunk, start)
