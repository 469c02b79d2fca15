"""The packed cache against a byte-by-byte construction."""

import struct

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cache import layout
from kernels.quant.reference import hadamard, quantise_activations


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_sizes_are_those_of_the_real_model():
    assert layout.latent_record_bytes(512, 64) == 656
    assert layout.index_page_bytes(128) == 8448


def test_a_latent_record_has_its_parts_at_the_documented_bytes():
    latent, rotated = random(3, 512), random(3, 64, seed=1)
    records = layout.pack_latent(latent, rotated)
    assert records.shape == (3, 656)
    quantised, scales = quantise_activations(latent, ue8m0=True)
    for token in range(3):
        data = bytes(records[token].tolist())
        assert data[:512] == bytes(quantised[token].view(torch.uint8).tolist())
        assert struct.unpack("<4f", data[512:528]) == tuple(scales[token].tolist())
        bfloat16 = rotated[token].to(torch.bfloat16).view(torch.int16).tolist()
        assert struct.unpack("<64h", data[528:]) == tuple(bfloat16)


def test_unpacking_gives_the_rounded_numbers():
    latent, rotated = random(5, 512) * 3, random(5, 64, seed=1)
    back = layout.unpack_latent(layout.pack_latent(latent, rotated), 512, torch.float32)
    quantised, scales = quantise_activations(latent, ue8m0=True)
    assert torch.equal(back[:, :512], (quantised.float().view(5, 4, 128) * scales[..., None]).flatten(1))
    assert torch.equal(back[:, 512:], rotated.to(torch.bfloat16).float())
    # e4m3 keeps 3 mantissa bits; its smallest step is 2^-9 of the scale
    assert ((back[:, :512] - latent).abs() <= latent.abs() / 16 + scales.repeat_interleave(128, 1) * 2**-9).all()


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(4)))
def test_index_keys_lie_in_pages_keys_first_then_scales(page_order):
    keys = random(4 * 64, 128)
    pages = torch.full((4, 8448), 255, dtype=torch.uint8)
    slots = (torch.tensor(page_order)[:, None] * 64 + torch.arange(64)).flatten()
    layout.write_index_keys(pages, slots, keys)
    quantised, scales = quantise_activations(hadamard(keys.to(torch.bfloat16)), ue8m0=True)
    for token in (0, 63, 64, 255):
        page, place = page_order[token // 64], token % 64
        data = bytes(pages[page].tolist())
        assert data[place * 128 : place * 128 + 128] == bytes(quantised[token].view(torch.uint8).tolist())
        start = 8192 + 4 * place
        assert struct.unpack("<f", data[start : start + 4]) == (float(scales[token]),)
    numbers, read_scales = layout.read_index_keys(pages[torch.tensor(page_order)], 128)
    assert torch.equal(numbers, quantised.float())
    assert torch.equal(read_scales, scales[:, 0])


def test_writing_one_slot_leaves_the_rest_of_the_page():
    pages = torch.full((1, 8448), 7, dtype=torch.uint8)
    layout.write_index_keys(pages, torch.tensor([5]), random(1, 128))
    touched = torch.zeros(8448, dtype=torch.bool)
    touched[5 * 128 : 6 * 128] = True
    touched[8192 + 20 : 8192 + 24] = True
    assert (pages[0][~touched] == 7).all()
