"""One layer's numbers between its first projection and attention, at any widths."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.cache.layout import index_page_bytes, latent_record_bytes
from kernels.cache.reference import KeyNorms
from kernels.testing.shapes import generator

INDEX_DIM = 128


@dataclass(frozen=True)
class LayerCase:
    """x: what the first projection gave. slots: in no order, one of them negative."""

    x: torch.Tensor
    norms: KeyNorms
    rotations: torch.Tensor
    slots: torch.Tensor
    records: torch.Tensor
    pages: torch.Tensor

    def fresh(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the empty cache."""
        return self.records.clone(), self.pages.clone()


def layer_case(
    num_tokens: int, query: int, latent: int, rope: int, dtype: torch.dtype, device: str, *, packed: bool
) -> LayerCase:
    """Random numbers; the cache is full of NaN."""
    random = generator()
    x = torch.randn(num_tokens, query + latent + rope + INDEX_DIM, generator=random).mul(2).to(dtype)
    weights = [torch.rand(width, generator=random) + 0.5 for width in (query, latent, INDEX_DIM)]
    bias = torch.randn(INDEX_DIM, generator=random) * 0.1
    angles = torch.randn(num_tokens, rope // 2, generator=random) * 5
    num_pages = num_tokens // 64 + 2
    slots = torch.randperm(num_pages * 64, generator=random)[:num_tokens]
    slots[num_tokens // 2 : num_tokens // 2 + 1] = -1
    kind, width = (torch.uint8, latent_record_bytes(latent, rope)) if packed else (dtype, latent + rope)
    records = torch.zeros(num_pages * 64, width, dtype=kind)
    records.view(torch.uint8).fill_(255)
    return LayerCase(
        x.to(device),
        KeyNorms(*(weight.to(device) for weight in (*weights, bias)), 1e-6, 1e-6),
        torch.view_as_real(torch.polar(torch.ones_like(angles), angles)).contiguous().to(device),
        slots.to(device),
        records.to(device),
        torch.full((num_pages, index_page_bytes(INDEX_DIM)), 255, dtype=torch.uint8, device=device),
    )
