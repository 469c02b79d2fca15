"""From a Batch to its StepResult on a device: inputs in one copy, a graph for steps of decode, tokens back."""

from __future__ import annotations

import numpy as np
import torch

from baleen.blocks import BLOCK_TOKENS
from baleen.config import RankConfig
from kernels.dispatch import triton_operations
from workers.cache.device_tensors import DeviceCache
from workers.engine.batch import Batch, StepResult
from workers.engine.device_sampler import DeviceSampler
from workers.model.device_batch import build_host_batch
from workers.model.device_experts import experts_over
from workers.model.device_model import DeviceModel
from workers.model.device_weights import DeviceWeights
from workers.model.forward import Piece
from workers.model.graphs import DecodeGraphs, context_buckets, fill_up, row_buckets
from workers.model.runner import BlockTables, step_result
from workers.parallel.dispatch import ExpertExchange
from workers.staging import Staging


class DeviceRunner:
    """Runs steps of one rank with the table of kernels. Owns the cache and a copy of the block tables."""

    def __init__(self, weights: DeviceWeights, config: RankConfig, exchange: ExpertExchange) -> None:
        """Allocate the cache on the weights' device. Raises ConfigError where format or widths are not the kernels'."""
        spec, operations = weights.spec, triton_operations()
        self.device = weights.embed.device
        self._spec = spec
        self._serves_others = exchange.world_size > 1
        self.cache = DeviceCache(spec, config.cache.num_blocks, config.cache.dtype, self.device)
        self._model = DeviceModel(weights, self.cache, experts_over(exchange, operations), operations)
        self._sampler = DeviceSampler(spec.vocab_size, self.device)
        self._staging = Staging(self.device)
        most_blocks = min(config.cache.num_blocks, -(-spec.max_positions // BLOCK_TOKENS))
        self._tables = BlockTables(config.engine.max_running, most_blocks)
        self._rows = row_buckets(config.engine.max_running)
        self._contexts = context_buckets(spec.index_topk, most_blocks * BLOCK_TOKENS)
        self._graphs: DecodeGraphs | None = None
        if self.device.type == "cuda" and exchange.world_size == 1:
            self._graphs = DecodeGraphs(self._model.forward, self._staging, self.device)

    def run(self, batch: Batch | None) -> StepResult:
        """Compute a step; waits for the device once, for the tokens. Without tokens it takes part in the group's."""
        items = batch.items if batch is not None else ()
        pieces = self._tables.pieces(items)
        owners = [place for place, piece in enumerate(pieces) if piece.samples]
        return step_result(self._sampler, self._logits(pieces), items, owners)

    def logits(self, batch: Batch) -> torch.Tensor:
        """Float32 logits [N, V] of the batch's sampling items, in item order."""
        return self._logits(self._tables.pieces(batch.items))

    def _logits(self, pieces: list[Piece]) -> torch.Tensor:
        if not pieces and not self._serves_others:
            return torch.empty(0, self._spec.vocab_size, device=self.device)
        if self._graphs is not None and all(piece.samples for piece in pieces):
            filled = fill_up(pieces, self._tables.array, self._rows, self._contexts)
            if filled is not None:
                return self._graphs.run(filled)[: len(pieces)]
        host = build_host_batch(pieces, self._tables.array)
        return self._model.forward(host.on(self._staging.upload(host.arrays)))

    def warm_up(self) -> None:
        """Run a short prompt and a decode step, and capture the graphs of decode steps.

        All ranks of a group call it together. It writes into block 0, which holds nothing yet.
        """
        table = np.zeros((1, 1), dtype=np.int64)
        prompt = Piece(token_ids=[self._spec.bos_token_id] * (BLOCK_TOKENS - 1), start=0, row=0, samples=True)
        decode = Piece(token_ids=[self._spec.bos_token_id], start=BLOCK_TOKENS - 1, row=0, samples=True)
        for piece in (prompt, decode):
            host = build_host_batch([piece], table)
            self._model.forward(host.on(self._staging.upload(host.arrays)))
        if self._graphs is not None:
            self._graphs.capture(self._rows, self._contexts)
