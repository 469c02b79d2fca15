"""The multi-head form against float64: pieces of every length with and without a prefix, both record formats."""

import dataclasses

import pytest

pytest.importorskip("triton", reason="triton is not installed on this platform")

import torch

from kernels.cache.layout import pack_latent
from kernels.dsa import dense, paged_reference
from kernels.dsa.dense import attend_dense
from kernels.dsa.pieces import PieceRun
from kernels.testing.compare import assert_close, assert_same_bits
from kernels.testing.shapes import block_table, generator

SCALE = 192**-0.5 * 1.8731  # about that of DeepSeek-V3.2
FORMATS = ("bfloat16", "float8")
# rows and keys of each piece: counts around a tile, and around a page, from the start and after a prefix
PIECES = ((1, 1), (63, 63), (0, 0), (64, 64), (65, 65), (2, 65), (1, 64), (65, 130), (3, 200))


@dataclasses.dataclass(frozen=True)
class Problem:
    """Arguments of `attend_dense`, of pieces that begin at some row and key of a longer step."""

    q_nope: torch.Tensor
    q_rope: torch.Tensor
    records: torch.Tensor
    table: torch.Tensor
    spans: torch.Tensor
    run: PieceRun
    w_uk: torch.Tensor
    w_uv: torch.Tensor

    def tensors(self):
        return self.q_nope, self.q_rope, self.records, self.table, self.spans

    def attend(self, **changed):
        return attend_dense(*self.tensors(), self.run, self.w_uk, self.w_uv, SCALE, **changed)

    def check(self, result):
        """Against keys and values that were rounded as the kernel's are, and against the truth without rounding."""
        on_cpu = [tensor.cpu() for tensor in (*self.tensors(), self.w_uk, self.w_uv)]
        out, lse = result
        assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
        expected, log_sums = paged_reference.attend_dense(*on_cpu, SCALE)
        assert_close(out, expected, absolute=1e-2, relative=2**-7, what="out")
        assert_close(lse, log_sums, absolute=3e-4, what="lse")
        exact = [weights.double() for weights in on_cpu[5:]]
        expected, log_sums = paged_reference.attend_dense(*on_cpu[:5], *exact, SCALE)
        assert_close(out, expected, absolute=3e-2, relative=2**-6, what="exact out")
        assert_close(lse, log_sums, absolute=2e-2, what="exact lse")


def problem(pieces, form, device, *, heads=2, seed=1):
    """Random queries of which a row lies apart from the next, pages in no order, and NaN in all that is no key."""
    rows, keys = [one[0] for one in pieces], [one[1] for one in pieces]
    maker = generator(seed)
    table, num_pages = block_table(keys)
    x = torch.randn(num_pages * 64, 576, generator=maker)
    records = pack_latent(x[:, :512], x[:, 512:]) if form == "float8" else x.to(torch.bfloat16)
    used = torch.zeros(num_pages, 64, dtype=torch.bool)
    for piece, count in enumerate(keys):
        for page in range(-(-count // 64)):
            used[table[piece, page].long(), : count - 64 * page] = True
    records[~used.flatten()] = 0xFF if form == "float8" else torch.nan
    row, key = 7, 50
    spans = torch.empty(len(pieces), 4, dtype=torch.int32)
    for piece, (some_rows, some_keys) in enumerate(pieces):
        spans[piece] = torch.tensor([row, some_rows, key, some_keys])
        row, key = row + some_rows, key + some_keys
    q = torch.randn(sum(rows), heads, 192, generator=maker).to(torch.bfloat16).to(device)
    w = (torch.randn(2, heads, 128, 512, generator=maker) / 16).to(torch.bfloat16).to(device)
    run = PieceRun(7, sum(rows), 50, sum(keys), max(rows, default=0), max(keys, default=0))
    places = (records.to(device), table.to(device), spans.to(device))
    return Problem(q[..., :128], q[..., 128:], *places, run, w[0], w[1])


@pytest.mark.parametrize("form", FORMATS)
def test_pieces_of_all_lengths(device, form):
    case = problem(PIECES, form, device)
    result = case.attend()
    case.check(result)
    for got, again in zip(result, case.attend(), strict=True):
        assert_same_bits(again, got)


def test_several_tiles_of_queries_behind_a_prefix(device):
    case = problem([(193, 260), (70, 70), (64, 100)], "float8", device, heads=1)
    case.check(case.attend())


@pytest.mark.parametrize("rows", [1, 63, 64, 65])
def test_one_piece_gives_the_bits_that_it_gives_beside_others(device, rows):
    """At a piece's end and at a tile's, nothing of the next piece is seen."""
    pieces = [(rows, rows), (100, 100)]
    both = problem(pieces, "bfloat16", device, heads=1)
    run = dataclasses.replace(both.run, num_rows=rows, num_keys=rows, most_keys=rows)
    tensors = {"q_nope": both.q_nope[:rows], "q_rope": both.q_rope[:rows], "table": both.table[:1]}
    alone = dataclasses.replace(both, **tensors, spans=both.spans[:1], run=run)
    for got, expected in zip(alone.attend(), both.attend(), strict=True):
        assert_same_bits(got, expected[:rows])


def test_nothing_to_attend(device):
    for pieces in ([], [(0, 0)]):
        out, lse = problem(pieces, "bfloat16", device).attend()
        assert out.shape == (0, 2, 128) and lse.shape == (0, 2)


def test_out_is_where_it_was_asked_for(device):
    case = problem([(3, 5)], "bfloat16", device)
    whole = torch.zeros(7, 2, 128, dtype=torch.bfloat16, device=device)
    out, _ = case.attend(out_THv=whole[2:5])
    assert out.data_ptr() == whole[2:5].data_ptr()
    assert_same_bits(whole[2:5], case.attend()[0])
    assert bool((whole[:2] == 0).all()) and bool((whole[5:] == 0).all())


def test_arguments_that_do_not_fit_are_refused(device):
    case = problem([(3, 70)], "bfloat16", device)
    for changed, message in (
        ({"q_nope": case.q_nope[..., :64]}, r"q_nope is \(3, 2, 64\).*expected \(3, 2, 128\) bfloat16"),
        ({"records": case.records.float()}, r"records is .*torch.float32.*expected \(\d+, 576\) torch.bfloat16"),
        ({"spans": case.spans.long()}, r"spans is \(1, 4\) torch.int64.*expected \(1, 4\) torch.int32"),
        ({"w_uv": case.w_uv[:, :64]}, r"w_uv is \(2, 64, 512\).*expected \(2, 128, 512\)"),
        ({"table": case.table[:, :1]}, "a piece has 70 keys, its table 1 pages of 64"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(case, **changed).attend()
    with pytest.raises(ValueError, match=r"out is \(4, 2, 128\).*expected \(3, 2, 128\)"):
        case.attend(out_THv=torch.empty(4, 2, 128, dtype=torch.bfloat16, device=device))
    odd = torch.zeros(3 * 2 * 193, dtype=torch.bfloat16, device=device).as_strided((3, 2, 128), (386, 193, 1))
    with pytest.raises(ValueError, match="stride_nope_row is 386, and must be a multiple of 16"):
        dataclasses.replace(case, q_nope=odd).attend()


def test_the_bound_is_not_empty(device):
    case = problem([(40, 64)], "bfloat16", device)
    out, lse = case.attend()
    with pytest.raises(AssertionError, match=r"out: .* elements are wrong"):
        case.check((out * 1.05, lse))
    with pytest.raises(AssertionError, match="lse: 80 of 80 elements are wrong"):
        case.check((out, lse + 1e-3))
    # a query that sees one key too few
    shifted = dataclasses.replace(case, spans=case.spans - torch.tensor([0, 0, 0, 1], dtype=torch.int32).to(device))
    with pytest.raises(AssertionError, match=r"out: .* elements are wrong"):
        case.check(shifted.attend())


def test_both_tiles_are_compiled_ahead():
    heights = {build.constants.get("BLOCK_M") for build in dense.configs()}
    assert heights == {None, dense.SMALL_ROWS, dense.LARGE_ROWS}
