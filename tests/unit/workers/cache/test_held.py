"""Blocks held outside requests: reservations and transfers, and their audit."""

from hypothesis import given
from hypothesis import strategies as st

from tests.support.redis_server import chain
from tests.support.shelf import Shelf
from workers.cache.held import HeldBlocks


def drain(held, most=1000):
    changes = held.take(most)
    return list(changes.stored), list(changes.removed)


def test_changes_are_told_once_and_the_last_state_counts():
    shelf, held, hashes = Shelf(), HeldBlocks(), chain(4)
    shelf.store(hashes)
    shelf.remove(hashes[3:])
    held.apply(shelf.events.after(0))
    assert drain(held) == (hashes[:3], hashes[3:])
    assert drain(held) == ([], [])
    assert list(held.held) == hashes[:3]


def test_a_block_is_told_after_the_one_before_it():
    shelf, held, hashes = Shelf(), HeldBlocks(), chain(3)
    shelf.store(hashes[:1])
    held.apply(shelf.events.after(0))
    shelf.store(hashes)
    shelf.remove(hashes[::-1])
    shelf.store(hashes)
    held.apply(shelf.events.after(1))
    assert drain(held, 2) == (hashes[:2], [])
    assert drain(held) == (hashes[2:], [])


def test_what_could_not_be_told_comes_first_unless_it_changed():
    shelf, held, hashes = Shelf(), HeldBlocks(), chain(3)
    shelf.store(hashes[:2])
    held.apply(shelf.events.after(0))
    changes = held.take(10)
    seen = shelf.events.sequence
    shelf.remove([hashes[1]])
    held.apply(shelf.events.after(seen))
    held.put_back(changes)
    assert drain(held) == ([hashes[0]], [hashes[1]])


def test_all_is_told_again_and_nothing_piles_up_meanwhile():
    shelf, held = Shelf(), HeldBlocks()
    for number in range(50):
        hashes = chain(3, first_token=number)
        shelf.store(hashes)
        if number:
            shelf.remove(hashes[::-1])
    held.apply(shelf.events.after(0))
    held.forget_untold()
    assert held.num_untold == 0
    held.tell_all()
    assert drain(held) == (chain(3), [])


def test_a_refresh_comes_round_to_everything_that_is_still_held():
    shelf, held, hashes = Shelf(), HeldBlocks(), chain(10)
    shelf.store(hashes)
    held.apply(shelf.events.after(0))
    drain(held)
    held.refresh(0.3)
    told = drain(held)[0]
    assert told == hashes[:3]
    shelf.remove(hashes[:7:-1])
    held.apply(shelf.events.after(10))
    drain(held)
    for _ in range(3):
        held.refresh(0.3)
        told += drain(held)[0]
    assert told == hashes[:8]


@given(st.data())
def test_events_or_a_snapshot_lead_to_the_same(data):
    shelf, held, known = Shelf(), HeldBlocks(), set()
    seen = 0
    for _ in range(data.draw(st.integers(1, 8))):
        for _ in range(data.draw(st.integers(0, 5))):
            hashes = chain(data.draw(st.integers(1, 4)), first_token=data.draw(st.integers(0, 2)))
            if data.draw(st.booleans()):
                shelf.store(hashes)
            else:
                shelf.remove([block_hash for block_hash in hashes if block_hash in shelf._stored])
            if data.draw(st.integers(0, 9)) == 0:
                shelf.clear()
        news = [shelf.snapshot()] if data.draw(st.booleans()) else shelf.events.after(seen)
        seen = shelf.events.sequence
        held.apply(news)
        stored, removed = drain(held)
        known = (known | set(stored)) - set(removed)
        assert known == set(held.held) == set(shelf._stored)
