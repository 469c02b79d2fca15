"""Laying a batch out on the token axis: every token keeps its position, slot and context, whatever it is mixed with."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.model.forward import PADDING_LIMIT, ROWS_PER_ITEM, Piece, build_forward_batch


def table_of(rows: int, blocks: int) -> np.ndarray:
    """Distinct block ids in a shuffled order."""
    return np.random.RandomState(0).permutation(rows * blocks).reshape(rows, blocks).astype(np.int64)


PIECES = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 9), st.booleans()), min_size=0, max_size=8)


@settings(max_examples=200, deadline=None)
@given(PIECES, st.integers(1, 200))
def test_every_token_keeps_its_place(drawn, dense_limit):
    table = table_of(8, 6)
    pieces = [
        Piece(token_ids=[1000 * row + i for i in range(count)], start=start, row=row, samples=samples)
        for row, (start, count, samples) in enumerate(drawn)
    ]
    batch, owners = build_forward_batch(pieces, table, dense_limit)
    assert batch.num_tokens == sum(len(piece.token_ids) for piece in pieces)
    places = {}
    for place, token in enumerate(batch.token_ids_T.tolist()):
        row, i = divmod(token, 1000)
        position = pieces[row].start + i
        places[token] = place
        assert int(batch.positions_T[place]) == position
        assert int(batch.slots_T[place]) == table[row, position // 64] * 64 + position % 64
    assert owners == sorted(set(owners), key=owners.index)
    assert {i for i, piece in enumerate(pieces) if piece.samples} == set(owners)
    for owner, place in zip(owners, batch.logit_tokens_N.tolist(), strict=True):
        assert batch.token_ids_T[place] == pieces[owner].token_ids[-1]
    check_groups(batch, pieces, table, dense_limit)
    check_segments(batch, pieces, table)


def check_groups(batch, pieces, table, dense_limit):
    """Rows come first, each sees its own context and nothing else, and padding is bounded."""
    next_place = 0
    for group in batch.groups:
        assert group.tokens.start == next_place
        next_place = group.tokens.stop
        num_rows = group.tokens.stop - group.tokens.start
        num_keys = group.hidden_BS.shape[1]
        needed = 0
        for i, token in enumerate(batch.token_ids_T[group.tokens].tolist()):
            row, offset = divmod(token, 1000)
            seen = pieces[row].start + offset + 1
            needed += -(-seen // 64)
            assert len(pieces[row].token_ids) <= ROWS_PER_ITEM
            assert group.sparse == (seen > dense_limit)
            assert group.hidden_BS[i].tolist() == [position >= seen for position in range(num_keys)]
            used = -(-seen // 64)
            assert group.blocks_Bn[i, :used].tolist() == table[row, :used].tolist()
        assert num_keys // 64 * num_rows <= PADDING_LIMIT * needed


def check_segments(batch, pieces, table):
    """Segments follow, one for each longer piece, with all blocks up to their end."""
    long = [row for row, piece in enumerate(pieces) if len(piece.token_ids) > ROWS_PER_ITEM]
    assert len(batch.segments) == len(long)
    for row, segment in zip(long, batch.segments, strict=True):
        assert batch.token_ids_T[segment.tokens].tolist() == pieces[row].token_ids
        assert (segment.start, segment.length) == (pieces[row].start, len(pieces[row].token_ids))
        assert segment.blocks_n.tolist() == table[row, : -(-segment.context // 64)].tolist()


def test_no_work_is_a_batch_of_nothing():
    batch, owners = build_forward_batch([], table_of(1, 1), 4)
    assert (batch.num_tokens, batch.groups, batch.segments, owners) == (0, (), (), [])


def test_decodes_of_like_length_share_a_group_and_unlike_do_not():
    table = table_of(8, 6)
    pieces = [Piece([1], start, row, True) for row, start in enumerate([300, 5, 310, 6])]
    batch, owners = build_forward_batch(pieces, table, 64)
    assert [group.tokens.stop - group.tokens.start for group in batch.groups] == [2, 2]
    assert owners == [1, 3, 0, 2]
