"""From a Batch to its StepResult on a device: inputs in one copy, a graph for steps of decode, tokens back."""

from __future__ import annotations

import numpy as np
import torch

from baleen.blocks import BLOCK_TOKENS
from baleen.config import RankConfig
from baleen.errors import ConfigError
from kernels.dispatch import triton_operations
from workers.cache.device_tensors import DeviceCache
from workers.engine.batch import Batch, StepResult
from workers.engine.device_sampler import DeviceSampler
from workers.model.device_batch import HostBatch, build_host_batch
from workers.model.device_experts import experts_over
from workers.model.device_model import DeviceModel
from workers.model.device_weights import DeviceMoe, DeviceWeights
from workers.model.forward import Piece
from workers.model.graphs import Buckets, DecodeGraphs, context_buckets, row_buckets
from workers.model.runner import BlockTables, scored_result, step_result
from workers.model.warm_up import warm_up_prompts
from workers.parallel.dispatch import ExpertExchange
from workers.parallel.lockstep import DecodeSize
from workers.staging import Staging

SWAPS_PER_LAYER = 2
"""Of a layer with experts in a step that is filled up: records there, answers back."""


class DeviceRunner:
    """Runs steps of one rank with the table of kernels. Owns the cache and a copy of the block tables.

    A decode step is filled up to the bucket that holds the rows of every rank of the group, which all ranks then run:
    as a graph on a GPU, and in the same form without one on a CPU.
    """

    def __init__(self, weights: DeviceWeights, config: RankConfig, exchange: ExpertExchange) -> None:
        """Allocate the cache on the weights' device. Raises ConfigError where format or widths are not the kernels'."""
        spec, operations = weights.spec, triton_operations()
        self.device = weights.embed.device
        self._spec = spec
        self._exchange = exchange
        self._serves_others = exchange.world_size > 1
        self.cache = DeviceCache(spec, config.cache.num_blocks, config.cache.dtype, self.device)
        self._model = DeviceModel(weights, self.cache, experts_over(exchange, operations), operations)
        self._num_swaps = SWAPS_PER_LAYER * sum(isinstance(layer.mlp, DeviceMoe) for layer in weights.layers)
        self._sampler = DeviceSampler(spec.vocab_size, self.device)
        self._staging = Staging(self.device)
        most_blocks = min(config.cache.num_blocks, -(-spec.max_positions // BLOCK_TOKENS))
        self._tables = BlockTables(config.engine.max_running, most_blocks)
        self._buckets = Buckets(
            rows=row_buckets(config.engine.max_running),
            contexts=context_buckets(spec.index_topk, most_blocks * BLOCK_TOKENS),
        )
        self._prompts = warm_up_prompts(
            most_tokens=config.engine.max_chunk_tokens,
            index_topk=spec.index_topk,
            most_context=most_blocks * BLOCK_TOKENS,
        )
        self._graphs: DecodeGraphs | None = None
        if self.device.type == "cuda":
            self._graphs = DecodeGraphs(self._model.forward, self._staging, self.device)

    @property
    def num_graphs(self) -> int:
        """Decode steps that are captured; on a CPU none."""
        return 0 if self._graphs is None else len(self._graphs)

    def run(self, batch: Batch | None, decode: DecodeSize | None = None) -> StepResult:
        """Compute a step; waits for the device once, for the tokens, or where none is sampled for the step's end.

        It waits once more for each prompt that is scored. So what it computed may be read by others, and its time be
        taken, when this returns. Without items it takes part in the group's step and waits for nothing. decode: of the
        group's Agreement.
        """
        items = batch.items if batch is not None else ()
        pieces = self._tables.pieces(items)
        owners = [place for place, piece in enumerate(pieces) if piece.samples]
        scores = any(piece.scored for piece in pieces)
        found = self._hidden(pieces) if scores else self._logits(pieces, decode)
        replayed = self._num_swaps if decode is not None and self._graphs is not None else 0
        with self._exchange.waiting(replayed):
            if scores:
                return scored_result(self._sampler, self._model.logits, found, items, owners)
            if items and not owners:
                self._wait()
            return step_result(self._sampler, found, items, owners)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            # blocking: other threads may have the processor meanwhile
            queued = torch.cuda.Event(blocking=True)
            queued.record()
            queued.synchronize()

    def logits(self, batch: Batch) -> torch.Tensor:
        """Float32 logits [N, V] of the batch's sampling items, in item order. All ranks of a group call it together."""
        return self._logits(self._tables.pieces(batch.items), None if self._serves_others else batch.decode)

    def _logits(self, pieces: list[Piece], decode: DecodeSize | None) -> torch.Tensor:
        if decode is not None and (self._serves_others or self._graphs is not None):
            filled = build_host_batch(pieces, self._tables.array, fill_to=self._buckets.holding(decode))
            logits_NV = self._forward(filled) if self._graphs is None else self._graphs.run(filled)
            return logits_NV[: len(pieces)]
        if not pieces and not self._serves_others:
            return torch.empty(0, self._spec.vocab_size, device=self.device)
        return self._forward(build_host_batch(pieces, self._tables.array))

    def _hidden(self, pieces: list[Piece]) -> torch.Tensor:
        host = build_host_batch(pieces, self._tables.array)
        return self._model.hidden(host.on(self._staging.upload(host.arrays)))

    def _forward(self, host: HostBatch) -> torch.Tensor:
        return self._model.forward(host.on(self._staging.upload(host.arrays)))

    def warm_up(self) -> None:
        """Compute prompts of all sizes and a decode step, and capture the graphs of decode steps.

        All ranks of a group call it together. It writes into block 0, which holds nothing yet. On a CPU, where nothing
        is compiled, it is one short prompt. Raises ConfigError if the group's ranks would run steps of other sizes.
        """
        self._require_same_sizes()
        self._compute(self._prompts if self.device.type == "cuda" else self._prompts[:1])
        table = np.zeros((1, 1), dtype=np.int64)
        decode = Piece(token_ids=[self._spec.bos_token_id], start=BLOCK_TOKENS - 1, row=0, samples=True)
        smallest = self._buckets.holding(DecodeSize(1, BLOCK_TOKENS)) if self._serves_others else None
        self._forward(build_host_batch([decode], table, fill_to=smallest))
        if self._graphs is not None:
            self._graphs.capture(self._buckets)

    def _compute(self, prompts: list[range]) -> None:
        for places in prompts:
            table = np.zeros((1, -(-places.stop // BLOCK_TOKENS)), dtype=np.int64)
            tokens = [self._spec.bos_token_id] * len(places)
            self._forward(build_host_batch([Piece(tokens, places.start, 0, samples=True)], table))

    def _require_same_sizes(self) -> None:
        own = (self._buckets.rows[-1], self._buckets.contexts[-1], max(map(len, self._prompts)))
        mine_W3 = torch.tensor([own] * self._exchange.world_size, device=self.device)
        for rank, theirs in enumerate(self._exchange.swap(mine_W3).tolist()):
            if tuple(theirs) != own:
                raise ConfigError(
                    f"engine.max_running, what cache.num_blocks holds and engine.max_chunk_tokens must be equal in all "
                    f"ranks of a group: {own[0]} requests, {own[1]} tokens and chunks of {own[2]} here, {theirs[0]}, "
                    f"{theirs[1]} and {theirs[2]} at rank {rank}"
                )

    def close(self) -> None:
        """Let go of the graphs, before the group whose exchanges are part of them."""
        if self._graphs is not None:
            self._graphs.clear()
