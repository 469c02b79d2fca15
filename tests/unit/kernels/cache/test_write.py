"""Records and index pages as the reference writes them, byte by byte, in both formats and at the model's widths."""

import pytest
import torch

from kernels.cache import reference
from kernels.cache.write import write_cache
from kernels.testing.compare import assert_close, assert_same_bits
from tests.unit.kernels.cache.layer_case import layer_case

WIDTHS = [
    pytest.param(5, 1536, 512, 64, torch.bfloat16, True, id="DeepSeek-V3.2, packed"),
    pytest.param(17, 128, 128, 64, torch.bfloat16, False, id="small, bfloat16 records"),
    pytest.param(1, 96, 256, 32, torch.float32, True, id="one token, narrow rotation"),
]


def num_different_bytes(a, b):
    return int((a.view(torch.uint8) != b.view(torch.uint8)).sum())


@pytest.mark.parametrize(("tokens", "query", "latent", "rope", "dtype", "packed"), WIDTHS)
def test_every_byte_is_the_reference_s(device, tokens, query, latent, rope, dtype, packed):
    case = layer_case(tokens, query, latent, rope, dtype, device, packed=packed)
    quantise = query % 128 == 0
    records, pages = case.fresh()
    found = write_cache(case.x, case.norms, case.rotations, case.slots, records, pages, quantise=quantise)
    expected_records, expected_pages = case.fresh()
    expected = reference.write_cache(
        case.x, case.norms, case.rotations, case.slots, expected_records, expected_pages, quantise=quantise
    )
    assert_close(found.normed, expected.normed, absolute=2e-6, relative=2**-7, what="query latent")
    # float32 sums in another order move a number over a border of bfloat16 or float8 once in thousands
    written = max(1, int((case.slots >= 0).sum()))
    assert num_different_bytes(records, expected_records) <= 1 + written * records[0].numel() // 1000
    assert num_different_bytes(pages, expected_pages) <= 1 + written * 132 // 1000
    if quantise:
        codes, scales = reference.quantise_activations(found.normed, ue8m0=True)
        assert_same_bits(found.codes, codes)
        assert_same_bits(found.scales, scales)


def test_negative_slots_write_nothing_and_reruns_write_the_same(device):
    case = layer_case(3, 128, 128, 64, torch.bfloat16, device, packed=True)
    records, pages = case.fresh()
    write_cache(case.x, case.norms, case.rotations, torch.full_like(case.slots, -1), records, pages, quantise=False)
    assert_same_bits(records, case.records)
    assert_same_bits(pages, case.pages)
    write_cache(case.x, case.norms, case.rotations, case.slots, records, pages, quantise=False)
    again, pages_again = case.fresh()
    write_cache(case.x, case.norms, case.rotations, case.slots, again, pages_again, quantise=False)
    assert_same_bits(again, records)
    assert_same_bits(pages_again, pages)
    empty = slice(0, 0)
    nothing = write_cache(
        case.x[empty], case.norms, case.rotations[empty], case.slots[empty], records, pages, quantise=True
    )
    assert nothing.codes is not None and nothing.codes.shape == (0, 128)


def test_a_wrong_pairing_is_seen(device):
    case = layer_case(4, 128, 128, 64, torch.bfloat16, device, packed=True)
    records, pages = case.fresh()
    write_cache(case.x, case.norms, case.rotations, case.slots, records, pages, quantise=False)
    turned = case.rotations.flip(1)
    wrong_records, wrong_pages = case.fresh()
    reference.write_cache(case.x, case.norms, turned, case.slots, wrong_records, wrong_pages, quantise=False)
    assert num_different_bytes(records, wrong_records) > 100
    assert num_different_bytes(pages, wrong_pages) > 100
