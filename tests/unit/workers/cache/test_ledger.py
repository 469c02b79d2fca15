"""The ledger: every block in one state, every hold counted, and an audit that names the leak."""

import pytest

from baleen.ids import RequestId
from workers.cache.ledger import AccountingError, BlockState, Holder, HolderKind, Ledger

A = Holder(RequestId("a"), 0)
B = Holder(RequestId("b"), 1)
LOAN = Holder(RequestId("a"), 0, HolderKind.TRANSFER)
COMING = Holder(RequestId("7"), 0, HolderKind.RESERVATION)


def counts(ledger: Ledger) -> tuple[int, int, int]:
    return ledger.num_free, ledger.num_held, ledger.num_cached


def test_a_block_goes_from_free_to_held_to_cached_to_held_to_free() -> None:
    ledger = Ledger(3)
    block = ledger.take(A)
    assert counts(ledger) == (2, 1, 0) and ledger.references(block) == 1
    assert ledger.release(A, keep={block}) == [block]
    assert counts(ledger) == (2, 0, 1) and ledger.state(block) is BlockState.CACHED
    assert ledger.share(B, block)
    assert counts(ledger) == (2, 1, 0) and ledger.held_by(B) == (block,)
    assert ledger.release(B, keep=()) == []
    assert counts(ledger) == (3, 0, 0) and ledger.state(block) is BlockState.FREE
    ledger.check({}, ())


def test_a_shared_block_stays_until_its_last_holder_leaves() -> None:
    ledger = Ledger(2)
    block = ledger.take(A)
    assert not ledger.share(B, block)
    ledger.check({A: [block], B: [block]}, {block})
    assert ledger.references(block) == 2
    assert ledger.release(A, keep={block}) == []
    assert ledger.state(block) is BlockState.HELD and counts(ledger) == (1, 1, 0)
    assert ledger.release(B, keep={block}) == [block]


def test_released_blocks_turn_cached_last_first() -> None:
    ledger = Ledger(3)
    blocks = [ledger.take(A) for _ in range(3)]
    assert ledger.release(A, keep=blocks) == blocks[::-1]


def test_reclaim_frees_a_cached_block_and_only_that() -> None:
    ledger = Ledger(1)
    block = ledger.take(A)
    with pytest.raises(AssertionError, match="held, not cached"):
        ledger.reclaim(block)
    ledger.release(A, keep={block})
    ledger.reclaim(block)
    assert counts(ledger) == (1, 0, 0)


def test_a_free_block_cannot_be_shared() -> None:
    with pytest.raises(AssertionError, match="is free"):
        Ledger(1).share(A, 0)


def test_releasing_nothing_is_no_error() -> None:
    assert Ledger(1).release(A, keep=()) == []


def test_check_names_the_request_that_leaks() -> None:
    ledger = Ledger(2)
    block = ledger.take(B)
    with pytest.raises(AccountingError, match=rf"request b\[1\] leaks.*\[{block}\]"):
        ledger.check({A: []}, ())


def test_check_names_the_request_that_disagrees() -> None:
    ledger = Ledger(2)
    ledger.take(A)
    with pytest.raises(AccountingError, match=r"request a\[0\] has blocks \[\]"):
        ledger.check({A: []}, ())
    with pytest.raises(AccountingError, match=r"request b\[1\] has blocks \[0\], the ledger says \[\]"):
        ledger.check({A: [0], B: [0]}, ())


def test_check_finds_a_block_in_two_states() -> None:
    ledger = Ledger(2)
    block = ledger.take(A)
    ledger._free[0] = block
    with pytest.raises(AccountingError, match=rf"block {block} is free and held by request a\[0\]"):
        ledger.check({A: [block]}, ())


def test_check_finds_a_wrong_reference_count() -> None:
    ledger = Ledger(2)
    block = ledger.take(A)
    ledger._references[block] = 2
    with pytest.raises(AccountingError, match="with 2 references, expected held with 1"):
        ledger.check({A: [block]}, ())


def test_check_finds_a_lost_block() -> None:
    ledger = Ledger(2)
    ledger._free.pop()
    with pytest.raises(AccountingError, match="are 1, the pool has 2"):
        ledger.check_counts()


def test_check_finds_cached_blocks_that_the_tree_does_not_know_and_the_reverse() -> None:
    ledger = Ledger(2)
    block = ledger.take(A)
    with pytest.raises(AccountingError, match=f"block {1 - block} is free, in the prefix tree: True"):
        ledger.check({A: [block]}, {1 - block})
    ledger.release(A, keep={block})
    with pytest.raises(AccountingError, match=f"block {block} is cached, in the prefix tree: False"):
        ledger.check({}, ())


def test_check_finds_a_block_that_is_free_twice() -> None:
    ledger = Ledger(2)
    ledger._free[0] = ledger._free[1]
    with pytest.raises(AccountingError, match="block 0 is free twice"):
        ledger.check({}, ())


def test_a_lent_block_is_held_while_a_request_has_it_and_lent_after() -> None:
    ledger = Ledger(2)
    block = ledger.take(A)
    ledger.share(LOAN, block)
    assert ledger.state(block) is BlockState.HELD and ledger.num_lent == 0
    ledger.check({A: [block], LOAN: [block]}, {block})
    assert ledger.release(A, keep={block}) == []
    assert ledger.state(block) is BlockState.LENT and (ledger.num_held, ledger.num_lent) == (0, 1)
    ledger.check({LOAN: [block]}, {block})
    assert not ledger.share(B, block)
    assert ledger.state(block) is BlockState.HELD and ledger.num_lent == 0
    ledger.release(B, keep={block})
    assert ledger.give_back(LOAN, block, keep={block})
    assert ledger.state(block) is BlockState.CACHED
    ledger.check({}, {block})


def test_a_cached_block_can_be_lent_and_a_private_one_is_freed_after() -> None:
    ledger = Ledger(2)
    cached, private = ledger.take(A), ledger.take(A)
    ledger.share(LOAN, private)
    ledger.release(A, keep={cached})
    assert ledger.share(LOAN, cached)
    assert (ledger.num_lent, ledger.num_cached) == (2, 0)
    assert ledger.release(LOAN, keep={cached}) == [cached]
    assert ledger.state(private) is BlockState.FREE and counts(ledger) == (1, 0, 1)


def test_blocks_arrive_in_order_and_are_nobody_s_until_they_land() -> None:
    ledger = Ledger(4)
    blocks = [ledger.expect(COMING) for _ in range(3)]
    assert (ledger.num_free, ledger.num_arriving) == (1, 3) and ledger.arriving_for(COMING) == tuple(blocks)
    with pytest.raises(AssertionError, match="is arriving"):
        ledger.share(A, blocks[0])
    ledger.check({COMING: blocks}, ())
    assert ledger.land(COMING) == blocks[0]
    assert ledger.state(blocks[0]) is BlockState.HELD
    ledger.check({COMING: blocks}, ())
    ledger.give_up(COMING)
    assert (ledger.num_free, ledger.num_arriving, ledger.num_held) == (3, 0, 1)
    ledger.check({COMING: blocks[:1]}, ())
    ledger.release(COMING, keep=())
    ledger.check({}, ())


def test_check_names_a_reservation_or_a_transfer_that_leaks() -> None:
    ledger = Ledger(2)
    ledger.expect(COMING)
    with pytest.raises(AccountingError, match=r"reservation 7\[0\] leaks"):
        ledger.check({}, ())
    block = ledger.take(A)
    ledger.share(LOAN, block)
    with pytest.raises(AccountingError, match=r"transfer of a\[0\] leaks"):
        ledger.check({A: [block], COMING: ledger.arriving_for(COMING)}, ())
