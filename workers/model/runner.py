"""From a Batch to its StepResult: block tables, the forward pass, the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from baleen.blocks import BLOCK_TOKENS
from baleen.config import RankConfig
from workers.cache.tensors import allocate_cache
from workers.engine.batch import Batch, BatchItem, SampledToken, SamplingFailure, StepResult
from workers.engine.request import Request
from workers.engine.sampler import DeadEnd, Sampler, SamplingError
from workers.model.deepseek_v32 import DeepseekV32
from workers.model.forward import ForwardBatch, Piece, build_forward_batch
from workers.model.prompt_scores import Logits, score_prompts
from workers.model.weights import Weights
from workers.parallel.dispatch import ExpertExchange
from workers.parallel.lockstep import DecodeSize

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Runner:
    """Runs steps of one rank. Owns the cache's tensors and a copy of the running requests' block tables."""

    def __init__(self, weights: Weights, config: RankConfig, exchange: ExpertExchange) -> None:
        """Allocate the cache. Raises ConfigError where the cache's format does not fit the model."""
        spec = weights.spec
        self._spec = spec
        self.cache = allocate_cache(
            spec,
            config.cache.dtype,
            config.cache.num_blocks,
            hadamard_keys=config.model.hadamard,
            compute_dtype=COMPUTE_DTYPES[config.model.compute_dtype],
        )
        self._model = DeepseekV32(weights, self.cache, exchange, attention_form=config.model.attention_form)
        self._sampler = Sampler(spec.vocab_size)
        most_blocks = min(config.cache.num_blocks, -(-spec.max_positions // BLOCK_TOKENS))
        self._tables = BlockTables(config.engine.max_running, most_blocks)

    def run(self, batch: Batch | None, decode: DecodeSize | None = None) -> StepResult:
        """Compute a step; with None or an empty batch, only serve this rank's experts to the group.

        decode: not looked at, since nothing is filled up here.
        """
        items = batch.items if batch is not None else ()
        step, owners = self._forward_batch(items)
        x_ND = self._model.hidden(step)
        return scored_result(self._sampler, self._model.logits, x_ND, items, owners)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Float32 logits [N, V] of the batch's sampling items, in item order."""
        step, owners = self._forward_batch(batch.items)
        logits_NV = self._model.forward(step)
        return logits_NV[torch.tensor(owners, dtype=torch.int64).argsort()]

    def close(self) -> None:
        """Nothing here must go before the group does."""

    def warm_up(self) -> None:
        """Run a short prompt and a decode step, so that the first request is not slow.

        All ranks of a group call it together. It writes into block 0, which holds nothing yet.
        """
        table = np.zeros((1, 1), dtype=np.int64)
        prompt = Piece(token_ids=[self._spec.bos_token_id] * (BLOCK_TOKENS - 1), start=0, row=0, samples=True)
        decode = Piece(token_ids=[self._spec.bos_token_id], start=BLOCK_TOKENS - 1, row=0, samples=True)
        for piece in (prompt, decode):
            self._model.forward(build_forward_batch([piece], table, self._spec.index_topk)[0])

    def _forward_batch(self, items: tuple[BatchItem, ...]) -> tuple[ForwardBatch, list[int]]:
        return build_forward_batch(self._tables.pieces(items), self._tables.array, self._spec.index_topk)


class SamplesRows(Protocol):
    """`Sampler`, or `DeviceSampler`."""

    def sample(self, logits_NV: torch.Tensor, requests: Sequence[Request]) -> list[SampledToken]:
        """One token for each request. Raises SamplingError."""
        ...


def sample_each(
    sampler: SamplesRows, logits_NV: torch.Tensor, requests: list[Request]
) -> list[SampledToken | SamplingFailure]:
    """One answer for each request; one that nothing can be chosen for fails alone, and the rest are drawn again."""
    try:
        return [*sampler.sample(logits_NV, requests)]
    except SamplingError as error:
        failed = [request.id == error.request_id and request.index == error.index for request in requests]
        rest = [request for request, bad in zip(requests, failed, strict=True) if not bad]
        answers = iter(sample_each(sampler, logits_NV[~torch.tensor(failed)], rest) if rest else ())
        failure = SamplingFailure(str(error), dead_end=isinstance(error, DeadEnd))
        return [failure if bad else next(answers) for bad in failed]


def step_result(
    sampler: SamplesRows, logits_NV: torch.Tensor, items: tuple[BatchItem, ...], owners: list[int]
) -> StepResult:
    """Sample the rows of the logits, which belong to the items `owners`."""
    sampled: list[SampledToken | SamplingFailure | None] = [None] * len(items)
    if owners:
        tokens = sample_each(sampler, logits_NV, [items[owner].request for owner in owners])
        for owner, token in zip(owners, tokens, strict=True):
            sampled[owner] = token
    return StepResult(tuple(sampled))


def scored_result(
    sampler: SamplesRows, logits: Logits, x_ND: torch.Tensor, items: tuple[BatchItem, ...], owners: list[int]
) -> StepResult:
    """The same from hidden states: first those that sample, then those that score prompts."""
    logits_NV = logits(x_ND[: len(owners)])
    sampled = step_result(sampler, logits_NV, items, owners).sampled
    if x_ND.shape[0] == len(owners):
        return StepResult(sampled)
    return StepResult(sampled, score_prompts(logits, x_ND[len(owners) :], items, logits_NV.shape[1]))


class BlockTables:
    """Block ids of the running requests as one array, [max_running, most blocks] int64; only what is new is written."""

    def __init__(self, max_running: int, most_blocks: int) -> None:
        self.array = np.zeros((max_running, most_blocks), dtype=np.int64)
        self._generations = [0] * max_running
        self._lengths = [0] * max_running

    def pieces(self, items: tuple[BatchItem, ...]) -> list[Piece]:
        """What the items compute, once their rows are up to date."""
        found = []
        for item in items:
            self.update(item.request)
            tokens = item.request.token_ids[item.start : item.start + item.num_tokens]
            found.append(Piece(tokens, item.start, item.request.slot, item.samples, item.scored))
        return found

    def update(self, request: Request) -> None:
        """Bring the row `request.slot` up to date; another generation than the one written starts it afresh."""
        slot, blocks = request.slot, request.block_ids
        if self._generations[slot] != request.generation:
            self._generations[slot] = request.generation
            known = 0
        else:
            known = self._lengths[slot]
            if known == len(blocks):
                return
        self.array[slot, known : len(blocks)] = blocks[known:]
        self._lengths[slot] = len(blocks)
