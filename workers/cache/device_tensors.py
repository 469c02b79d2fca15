"""The KV cache on a device, in the layouts that the kernels read: `kernels.cache.layout`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from baleen.blocks import BLOCK_TOKENS
from baleen.config import CacheDtype
from baleen.errors import ConfigError
from baleen.model_spec import ModelSpec
from kernels.cache.layout import index_page_bytes, latent_record_bytes


class DeviceCache:
    """One rank's cache. latent: by layer, [slots, record bytes] uint8 packed, or [slots, latent + rotated] bfloat16.
    index: by layer, [num_blocks, page bytes] uint8, always float8. All layers of each are one piece of memory.
    """

    def __init__(self, spec: ModelSpec, num_blocks: int, dtype: CacheDtype, device: torch.device) -> None:
        """Allocate, zeroed: a record that was never written must be finite."""
        self.num_blocks = num_blocks
        width, kind = _record(spec, dtype)
        page = index_page_bytes(spec.index_head_dim)
        slots = num_blocks * BLOCK_TOKENS
        self._latent = torch.zeros(spec.num_layers, slots, width, dtype=kind, device=device)
        self._index = torch.zeros(spec.num_layers, num_blocks, page, dtype=torch.uint8, device=device)
        self.latent, self.index = list(self._latent.unbind()), list(self._index.unbind())

    def by_block(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The memory of records and of index keys as uint8 [layers, num_blocks, bytes of one layer's block]."""
        latent, index = (
            whole.view(torch.uint8).view(len(whole), self.num_blocks, -1) for whole in (self._latent, self._index)
        )
        return latent, index

    def layers(self) -> tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]:
        """See CacheTensors."""
        return self.latent, self.index

    @property
    def num_bytes(self) -> int:
        """Bytes of all of it."""
        return sum(tensor.nbytes for tensor in (*self.latent, *self.index))


def device_block_bytes(spec: ModelSpec, dtype: CacheDtype) -> int:
    """Bytes of one block of 64 tokens in all layers. Raises ConfigError on a format that the kernels do not have."""
    width, kind = _record(spec, dtype)
    return spec.num_layers * (BLOCK_TOKENS * width * kind.itemsize + index_page_bytes(spec.index_head_dim))


def _record(spec: ModelSpec, dtype: CacheDtype) -> tuple[int, torch.dtype]:
    if dtype == "float8":
        return latent_record_bytes(spec.kv_lora_rank, spec.qk_rope_head_dim), torch.uint8
    if dtype == "bfloat16":
        return spec.latent_dim, torch.bfloat16
    raise ConfigError(f"cache.dtype is {dtype!r}, must be float8 or bfloat16 with model.kernels triton")
