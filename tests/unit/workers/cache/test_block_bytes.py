"""A block's bytes hold all of it and nothing else, in each format."""

from __future__ import annotations

import pytest
import torch

from baleen.model_spec import ModelSpec, model_spec_from_config
from tests.support.models import golden_recipe
from workers.cache.block_bytes import HOST, export_block, import_block
from workers.cache.device_bytes import DeviceBytes
from workers.cache.device_tensors import DeviceCache
from workers.cache.tensors import CacheBytes, allocate_cache

CPU = torch.device("cpu")
FORMATS = ["float32", "bfloat16", "float8"]
DEVICE_FORMATS = ["bfloat16", "float8"]


def spec() -> ModelSpec:
    return model_spec_from_config(golden_recipe("dev_fp8.golden").config)


def filled_cache(cache_dtype, num_blocks, seed):
    """A cache in which every block was written through the model's own way."""
    generator = torch.Generator().manual_seed(seed)
    model = spec()
    cache = allocate_cache(model, cache_dtype, num_blocks, hadamard_keys=False, compute_dtype=torch.float32)
    slots = torch.arange(num_blocks * 64)
    for layer in range(model.num_layers):
        records = torch.randn(len(slots), model.latent_dim, generator=generator)
        keys = torch.randn(len(slots), model.index_head_dim, generator=generator)
        cache.write(layer, slots, records, keys)
    return cache


def read(cache, block):
    """Everything that the model reads of a block, in every layer."""
    blocks = torch.tensor([block])
    found = []
    for layer in range(spec().num_layers):
        found.append(cache.read_blocks(layer, blocks))
        found += [part for part in cache.read_index_blocks(layer, blocks) if part is not None]
    return found


def same(left, right):
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("cache_dtype", FORMATS)
def test_a_block_moves_whole_and_disturbs_no_other(cache_dtype):
    source, target = filled_cache(cache_dtype, 3, 1), filled_cache(cache_dtype, 4, 2)
    before = [read(target, block) for block in range(4)]
    outgoing, incoming = CacheBytes(source, "f"), CacheBytes(target, "f")
    assert outgoing.layout == incoming.layout
    data = export_block(outgoing, 1)
    assert len(data) == outgoing.layout.block_bytes
    import_block(incoming, 2, data)
    assert same(read(target, 2), read(source, 1)) and not same(before[2], read(target, 2))
    assert all(same(before[block], read(target, block)) for block in (0, 1, 3))
    assert export_block(incoming, 2) == data


@pytest.mark.parametrize("cache_dtype", FORMATS)
def test_the_layout_gives_the_size_of_every_piece(cache_dtype):
    model = spec()
    cache = CacheBytes(filled_cache(cache_dtype, 2, 1), "f")
    sizes = [len(view) for view in cache.views(1)]
    layout = cache.layout
    assert sizes == [layout.latent_bytes] * model.num_layers + [layout.index_bytes] * model.num_layers
    latent, index = {
        "float32": (4 * model.latent_dim, 4 * model.index_head_dim),
        "bfloat16": (2 * model.latent_dim, 2 * model.index_head_dim),
        "float8": (
            model.kv_lora_rank + model.kv_lora_rank // 128 * 4 + 2 * model.qk_rope_head_dim,
            model.index_head_dim + 4,
        ),
    }[cache_dtype]
    assert (layout.latent_bytes, layout.index_bytes) == (64 * latent, 64 * index)


def test_views_are_the_cache_s_own_memory():
    cache = filled_cache("float32", 2, 1)
    CacheBytes(cache, "f").views(1)[0][:4] = b"\x00\x00\x80\x3f"
    assert cache.read_blocks(0, torch.tensor([1]))[0, 0].item() == 1.0


def test_bytes_of_another_size_are_not_imported():
    cache = CacheBytes(filled_cache("float32", 1, 1), "f")
    with pytest.raises(AssertionError, match="a block has"):
        import_block(cache, 0, b"short")


def device_cache(cache_dtype, num_blocks, seed):
    """A device's cache of random bytes."""
    cache = DeviceCache(
        model_spec_from_config(golden_recipe("dev_fp8.golden").full_config()), num_blocks, cache_dtype, CPU
    )
    for part in cache.by_block():
        part.random_(0, 256, generator=torch.Generator().manual_seed(seed))
    return cache


def block_of(cache, block):
    """What the kernels read of a block, by layer."""
    slots = slice(64 * block, 64 * block + 64)
    return [records[slots].view(torch.uint8).clone() for records in cache.latent] + [
        pages[block].clone() for pages in cache.index
    ]


@pytest.mark.parametrize("cache_dtype", DEVICE_FORMATS)
def test_a_device_s_block_passes_through_memory_beside_it(cache_dtype):
    source, target = device_cache(cache_dtype, 3, 1), device_cache(cache_dtype, 4, 2)
    before = [block_of(target, block) for block in range(4)]
    outgoing, incoming = DeviceBytes(source, "f"), DeviceBytes(target, "f")
    data = export_block(outgoing, 1)
    # in the order of the layout
    assert data == b"".join(part.numpy().tobytes() for part in block_of(source, 1))
    assert len(data) == outgoing.layout.block_bytes
    with incoming.open(2) as block:
        block.views[0][:] = data
        assert same(block_of(target, 2), before[2]), "nothing is in the block before it is stored"
        with incoming.open(3) as other:
            assert other.views[0] != data, "each block that is open has its own memory"
    import_block(incoming, 2, data)
    assert same(block_of(target, 2), block_of(source, 1))
    assert all(same(before[block], block_of(target, block)) for block in (0, 1, 3))


@pytest.mark.parametrize("cache_dtype", DEVICE_FORMATS)
def test_a_device_s_layout_and_pieces_are_those_of_its_tensors(cache_dtype):
    cache = device_cache(cache_dtype, 2, 1)
    outside = DeviceBytes(cache, "f")
    record = 656 if cache_dtype == "float8" else 2 * 576
    assert (outside.layout.latent_bytes, outside.layout.index_bytes) == (64 * record, 8448)
    with outside.open(1) as block:
        expected = [
            (part.data_ptr(), part.nbytes) for part in (*(r[64:] for r in cache.latent), *(p[1] for p in cache.index))
        ]
        assert block.pieces == expected
    (latent, latent_bytes), (index, index_bytes) = outside.regions()
    assert latent == cache.latent[0].data_ptr() and index == cache.index[0].data_ptr()
    assert latent_bytes + index_bytes == cache.num_bytes
    assert outside.memory == HOST
