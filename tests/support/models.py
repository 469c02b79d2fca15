"""Checkpoints and models of tests: those that the goldens were computed from, and small ones of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from baleen.config import AttentionForm, CacheDtype
from baleen.model_spec import ModelSpec
from kernels.quant.weights import dequantise_weight
from tests.support.golden import golden
from workers.cache.tensors import allocate_cache
from workers.model.checkpoint import Checkpoint
from workers.model.deepseek_v32 import DeepseekV32
from workers.model.forward import Piece, build_forward_batch
from workers.model.loading import load_weights
from workers.model.make_checkpoint import CheckpointRecipe, make_checkpoint
from workers.model.names import tensor_rules
from workers.model.weights import Weights
from workers.parallel.dispatch import ExpertExchange
from workers.parallel.local import LocalExchange

STORED = {"fp8": "float8", "bfloat16": "bfloat16", "float32": "float32"}


def golden_recipe(name: str) -> CheckpointRecipe:
    """Recipe of the checkpoint behind a golden file; without a tokenizer, since the goldens speak token ids."""
    expected = golden(name)
    if name == "tiny_v32_golden":
        return CheckpointRecipe(config=expected["config"], dtype="float32", formula="flat", tokenizer=None)
    spec = expected["spec"]
    return CheckpointRecipe(config=spec["config"], seed=spec["seed"], dtype=STORED[spec["dtype"]], tokenizer=None)


def golden_cases(name: str) -> list[dict[str, Any]]:
    """Cases of a golden file in one form: prompt, greedy, perhaps greedy_logprobs, and ignore_eos, false where the
    end-of-sequence token was masked while decoding.
    """
    expected = golden(name)
    if name == "tiny_v32_golden":
        return [{"prompt": expected["prompt"], "greedy": expected["greedy_24"], "ignore_eos": True}]
    return [{**case, "ignore_eos": False} for case in expected["cases"]]


def make_golden_checkpoint(name: str, directory: Path) -> Path:
    """Write the checkpoint behind a golden file."""
    make_checkpoint(directory, golden_recipe(name), progress=False)
    return directory


def load_whole(directory: Path, dtype: torch.dtype = torch.float32) -> Weights:
    """All weights of a checkpoint, for one rank."""
    with Checkpoint.open(directory) as checkpoint:
        return load_weights(checkpoint, rank=0, world_size=1, compute_dtype=dtype, progress=False)[0]


def plain_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Checkpoint name to the float32 values that a forward pass must use."""
    values = {}
    with Checkpoint.open(directory) as checkpoint:
        for rule in tensor_rules(checkpoint.spec):
            stored = checkpoint.read(rule.name)
            if stored.dtype == torch.float8_e4m3fn:
                stored = dequantise_weight(stored, checkpoint.read(rule.scale_name))
            values[rule.name] = stored.float()
    return values


class SingleSequence:
    """One sequence through the model, its blocks in a shuffled order, fed in chunks."""

    def __init__(
        self,
        weights: Weights,
        *,
        cache_dtype: CacheDtype = "float32",
        form: AttentionForm = "auto",
        hadamard: bool = False,
        num_blocks: int = 16,
        exchange: ExpertExchange | None = None,
        seed: int = 0,
    ) -> None:
        self.spec: ModelSpec = weights.spec
        compute = weights.embed.dtype
        cache = allocate_cache(self.spec, cache_dtype, num_blocks, hadamard_keys=hadamard, compute_dtype=compute)
        exchange = exchange or LocalExchange(self.spec.num_experts)
        self.model = DeepseekV32(weights, cache, exchange, attention_form=form)
        self.table = np.random.RandomState(seed).permutation(num_blocks)[None].astype(np.int64)
        self.num_computed = 0

    def feed(self, token_ids: list[int]) -> torch.Tensor:
        """Compute the next tokens in one step; logits of the last one, [vocab]."""
        piece = Piece(token_ids, self.num_computed, 0, samples=True)
        batch, _ = build_forward_batch([piece], self.table, self.spec.index_topk)
        self.num_computed += len(token_ids)
        return self.model.forward(batch)[0]

    def prefill(self, token_ids: list[int], chunk: int) -> torch.Tensor:
        """Compute a prompt in chunks; logits of its last token."""
        for start in range(0, len(token_ids), chunk):
            logits = self.feed(token_ids[start : start + chunk])
        return logits
