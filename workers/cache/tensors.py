"""The KV cache's tensors: where a token's latent record and index key lie, in each of the three formats.

Slots count tokens: slot = block * 64 + place in the block. Every layer has one tensor for records and one for index
keys; a block is the same slot range in all of them.

Legend: T tokens written, B rows read, S tokens read per row, C latent width, Q = C + rotated width, D index width,
N index heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from baleen.blocks import BLOCK_TOKENS
from baleen.config import CacheDtype
from baleen.errors import ConfigError
from baleen.model_spec import QUANT_BLOCK, ModelSpec
from kernels.cache import layout
from kernels.quant.reference import hadamard
from workers.cache.block_bytes import BlockLayout, HostBlocks


class CacheTensors(Protocol):
    """One rank's cache. Reads give the compute dtype; what was written is read back as the format rounds it."""

    num_blocks: int

    def write(self, layer: int, slots_T: torch.Tensor, records_TQ: torch.Tensor, index_keys_TD: torch.Tensor) -> None:
        """Store latent records (normed latent, rotated key) and rotated index keys at `slots`."""
        ...

    def read_blocks(self, layer: int, blocks_n: torch.Tensor) -> torch.Tensor:
        """Records of whole blocks: [n * 64, Q]."""
        ...

    def read_slots(self, layer: int, slots_n: torch.Tensor) -> torch.Tensor:
        """Records of single slots: [n, Q]."""
        ...

    def read_index_blocks(self, layer: int, blocks_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Index keys of whole blocks, [n * 64, D], and their scales [n * 64] where the format has any."""
        ...

    def index_queries(self, q_TND: torch.Tensor, weights_TN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Bring index queries into the form that the stored keys have; a query's scale moves into its head weights."""
        ...

    def layers(self) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """The tensors themselves: latent records and index keys, one of each per layer, first dimension by slot or
        block.
        """
        ...


class HoldsLayers(Protocol):
    """What `CacheBytes` needs of a cache; see CacheTensors."""

    num_blocks: int

    def layers(self) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """See CacheTensors."""
        ...


class CacheBytes(HostBlocks):
    """A cache in the machine's memory as `BlockBytes`: views of the tensors, layer by layer.

    record_format: names what the numbers are, for a peer to compare.
    """

    def __init__(self, cache: HoldsLayers, record_format: str) -> None:
        latent, index = ([_by_block(tensor, cache.num_blocks) for tensor in part] for part in cache.layers())
        self._parts = [*latent, *index]
        self._layout = BlockLayout(record_format, len(latent), latent[0].shape[1], index[0].shape[1])

    @property
    def layout(self) -> BlockLayout:
        """See BlockBytes."""
        return self._layout

    def views(self, block_id: int) -> list[memoryview]:
        """See HostBlocks."""
        return [memoryview(part[block_id]) for part in self._parts]

    def regions(self) -> list[tuple[int, int]]:
        """See BlockBytes."""
        return [(part.ctypes.data, part.nbytes) for part in self._parts]


def _by_block(tensor: torch.Tensor, num_blocks: int) -> npt.NDArray[np.uint8]:
    """A tensor's own memory as [num_blocks, bytes of one block]."""
    array: npt.NDArray[np.uint8] = tensor.view(torch.uint8).view(num_blocks, -1).numpy()
    return array


class PlainCache:
    """Records and index keys as numbers of one dtype, float32 or bfloat16: index scores are exact."""

    def __init__(
        self, spec: ModelSpec, num_blocks: int, dtype: torch.dtype, *, hadamard_keys: bool, compute_dtype: torch.dtype
    ) -> None:
        self.num_blocks = num_blocks
        self._compute_dtype = compute_dtype
        self._hadamard = hadamard_keys
        slots = num_blocks * BLOCK_TOKENS
        self._latent = [torch.zeros(slots, spec.latent_dim, dtype=dtype) for _ in range(spec.num_layers)]
        self._index = [torch.zeros(slots, spec.index_head_dim, dtype=dtype) for _ in range(spec.num_layers)]

    def write(self, layer: int, slots_T: torch.Tensor, records_TQ: torch.Tensor, index_keys_TD: torch.Tensor) -> None:
        """See CacheTensors."""
        latent, index = self._latent[layer], self._index[layer]
        if self._hadamard:
            index_keys_TD = hadamard(index_keys_TD)
        latent.index_copy_(0, slots_T, records_TQ.to(latent.dtype))
        index.index_copy_(0, slots_T, index_keys_TD.to(index.dtype))

    def read_blocks(self, layer: int, blocks_n: torch.Tensor) -> torch.Tensor:
        """See CacheTensors."""
        return self._gather_blocks(self._latent[layer], blocks_n)

    def read_slots(self, layer: int, slots_n: torch.Tensor) -> torch.Tensor:
        """See CacheTensors."""
        return self._latent[layer].index_select(0, slots_n).to(self._compute_dtype)

    def read_index_blocks(self, layer: int, blocks_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See CacheTensors."""
        return self._gather_blocks(self._index[layer], blocks_n), None

    def index_queries(self, q_TND: torch.Tensor, weights_TN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See CacheTensors."""
        return (hadamard(q_TND) if self._hadamard else q_TND), weights_TN

    def layers(self) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """See CacheTensors."""
        return self._latent, self._index

    def _gather_blocks(self, tensor: torch.Tensor, blocks_n: torch.Tensor) -> torch.Tensor:
        width = tensor.shape[1]
        blocks = tensor.view(self.num_blocks, BLOCK_TOKENS * width).index_select(0, blocks_n)
        return blocks.view(-1, width).to(self._compute_dtype)


class PackedCache:
    """The packed float8 formats of `kernels.cache.layout`; index queries are quantised as the keys are."""

    def __init__(self, spec: ModelSpec, num_blocks: int, *, compute_dtype: torch.dtype) -> None:
        self.num_blocks = num_blocks
        self._compute_dtype = compute_dtype
        self._latent_dim = spec.kv_lora_rank
        self._index_dim = spec.index_head_dim
        record = layout.latent_record_bytes(spec.kv_lora_rank, spec.qk_rope_head_dim)
        page = layout.index_page_bytes(spec.index_head_dim)
        slots = num_blocks * BLOCK_TOKENS
        self._latent = [torch.zeros(slots, record, dtype=torch.uint8) for _ in range(spec.num_layers)]
        self._index = [torch.zeros(num_blocks, page, dtype=torch.uint8) for _ in range(spec.num_layers)]

    def write(self, layer: int, slots_T: torch.Tensor, records_TQ: torch.Tensor, index_keys_TD: torch.Tensor) -> None:
        """See CacheTensors."""
        packed = layout.pack_latent(records_TQ[:, : self._latent_dim], records_TQ[:, self._latent_dim :])
        self._latent[layer].index_copy_(0, slots_T, packed)
        layout.write_index_keys(self._index[layer], slots_T, index_keys_TD)

    def read_blocks(self, layer: int, blocks_n: torch.Tensor) -> torch.Tensor:
        """See CacheTensors."""
        latent = self._latent[layer]
        records = latent.view(self.num_blocks, -1).index_select(0, blocks_n).view(-1, latent.shape[1])
        return layout.unpack_latent(records, self._latent_dim, self._compute_dtype)

    def read_slots(self, layer: int, slots_n: torch.Tensor) -> torch.Tensor:
        """See CacheTensors."""
        records = self._latent[layer].index_select(0, slots_n)
        return layout.unpack_latent(records, self._latent_dim, self._compute_dtype)

    def read_index_blocks(self, layer: int, blocks_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See CacheTensors."""
        return layout.read_index_keys(self._index[layer].index_select(0, blocks_n), self._index_dim)

    def index_queries(self, q_TND: torch.Tensor, weights_TN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See CacheTensors."""
        quantised, scales_TN = layout.quantise_index_vectors(q_TND)
        return quantised.float(), weights_TN * scales_TN

    def layers(self) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """See CacheTensors."""
        return self._latent, self._index


def allocate_cache(
    spec: ModelSpec, dtype: CacheDtype, num_blocks: int, *, hadamard_keys: bool, compute_dtype: torch.dtype
) -> CacheTensors:
    """Allocate one rank's cache, zeroed. Raises ConfigError where the model's widths do not fit the packed format."""
    if dtype != "float8":
        stored = torch.float32 if dtype == "float32" else torch.bfloat16
        return PlainCache(spec, num_blocks, stored, hadamard_keys=hadamard_keys, compute_dtype=compute_dtype)
    if spec.kv_lora_rank % QUANT_BLOCK:
        raise ConfigError(
            f"cache.dtype float8 needs kv_lora_rank to be a multiple of {QUANT_BLOCK}, it is {spec.kv_lora_rank}"
        )
    if spec.index_head_dim != QUANT_BLOCK:
        raise ConfigError(f"cache.dtype float8 needs index_head_dim {QUANT_BLOCK}, it is {spec.index_head_dim}")
    return PackedCache(spec, num_blocks, compute_dtype=compute_dtype)
