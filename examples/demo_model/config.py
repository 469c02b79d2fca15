"""Sizes of the demo model, as config.json has them."""

from __future__ import annotations

from typing import Any

from workers.model.make_checkpoint import PRESETS

CONFIG: dict[str, Any] = dict(PRESETS["tiny"]) | {
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 5,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "num_attention_heads": 4,
    "q_lora_rank": 256,
    "index_n_heads": 4,
    "index_topk": 128,
}
