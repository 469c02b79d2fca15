"""The prefix tree and the ledger behind `BlockCache`, driven by users that are no requests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.blocks import BLOCK_TOKENS, BlockHash, chain_hashes, child_hash, root_hash, shareable_blocks
from baleen.ids import RequestId
from workers.cache.blocks import BlockCache
from workers.cache.events import Cleared, Event, Removed, Stored
from workers.cache.ledger import AccountingError, Holder
from workers.cache.prefix import HashBlock, Node

FINGERPRINT = b"model"


@dataclass(eq=False)
class User:
    token_ids: list[int]
    name: str = "user"
    salt: bytes = b""
    num_computed: int = 0
    block_ids: list[int] = field(default_factory=list)
    prefix_node: Node | None = None

    @property
    def key(self) -> Holder:
        return Holder(RequestId(self.name), 0)

    @property
    def num_shareable_blocks(self) -> int:
        return shareable_blocks(len(self.token_ids))


class Cache:
    """A BlockCache with the users that hold blocks, checked after every change."""

    def __init__(self, num_blocks: int, hash_block: HashBlock = child_hash) -> None:
        self.blocks = BlockCache(num_blocks, FINGERPRINT, hash_block=hash_block)
        self.users: dict[Holder, User] = {}

    def admit(self, user: User, reserve: int = 0) -> int | None:
        found = self.blocks.admit(user, reserve=reserve)
        if found is not None:
            user.num_computed = found
            self.users[user.key] = user
        self.check()
        return found

    def compute(self, user: User, num_tokens: int | None = None) -> None:
        user.num_computed = len(user.token_ids) if num_tokens is None else num_tokens
        self.blocks.register_computed(user)
        self.check()

    def release(self, user: User) -> None:
        self.blocks.release(user)
        user.num_computed = 0
        del self.users[user.key]
        self.check()

    def fill(self, user: User) -> list[int]:
        """Admit, compute and release; the blocks that it had."""
        assert self.admit(user) is not None
        self.compute(user)
        had = list(user.block_ids)
        self.release(user)
        return had

    def check(self) -> None:
        self.blocks.check(self.users)


def text(*values: int, tail: int = 1) -> list[int]:
    """One full block for each value, and a tail that is no full block."""
    return [value for value in values for _ in range(BLOCK_TOKENS)] + [99] * tail


def test_a_second_user_shares_full_blocks_and_computes_the_rest() -> None:
    cache = Cache(8)
    first = User(text(1, 2, 3), "first")
    assert cache.admit(first) == 0
    cache.compute(first)
    second = User(text(1, 2, 4), "second")
    assert cache.admit(second) == 2 * BLOCK_TOKENS
    assert second.block_ids[:2] == first.block_ids[:2]
    assert not set(second.block_ids[2:]) & set(first.block_ids)
    assert cache.blocks.num_held == 6 and cache.blocks.num_free == 2
    assert not cache.blocks.is_private(first.block_ids[0]) and cache.blocks.is_private(first.block_ids[3])


def test_at_least_one_token_is_left_to_compute() -> None:
    cache = Cache(8)
    cache.fill(User(text(1, 2, tail=0)))
    again = User(text(1, 2, tail=0))
    assert cache.admit(again) == BLOCK_TOKENS
    assert len(again.block_ids) == 2 and cache.blocks.is_private(again.block_ids[1])


def test_only_full_and_computed_blocks_are_shared() -> None:
    cache = Cache(8)
    first = User(text(1, 2), "first")
    cache.admit(first)
    cache.compute(first, 2 * BLOCK_TOKENS - 1)
    assert cache.admit(User(text(1, 2), "second")) == BLOCK_TOKENS


def test_released_blocks_stay_cached_and_the_partial_one_is_free() -> None:
    cache = Cache(4)
    had = cache.fill(User(text(1, 2)))
    assert (cache.blocks.num_free, cache.blocks.num_held, cache.blocks.num_cached) == (2, 0, 2)
    again = User(text(1, 2))
    assert cache.admit(again) == 2 * BLOCK_TOKENS and again.block_ids[:2] == had[:2]
    assert cache.blocks.num_cached == 0


def test_another_salt_never_matches() -> None:
    cache = Cache(8)
    cache.fill(User(text(1, 2), salt=b"one"))
    assert cache.admit(User(text(1, 2), salt=b"two")) == 0


def weak_hash(parent: BlockHash, packed: bytes) -> BlockHash:
    return BlockHash(bytes(16))


def weak_after_the_first(parent: BlockHash, packed: bytes) -> BlockHash:
    """A hash that tells apart only the first token of a block."""
    return BlockHash(packed[:4] * 4)


def test_colliding_hashes_neither_match_other_tokens_nor_another_salt() -> None:
    cache = Cache(8, weak_hash)
    cache.fill(User(text(1), salt=b"one"))
    assert cache.admit(User(text(2), "tokens", salt=b"one")) == 0
    assert cache.admit(User(text(1), "salt", salt=b"two")) == 0
    assert cache.admit(User(text(1), "equal", salt=b"one")) == BLOCK_TOKENS


def test_blocks_that_differ_only_in_the_last_token_do_not_match_under_a_weak_hash() -> None:
    cache = Cache(8, weak_after_the_first)
    cache.fill(User(text(1)))
    other = text(1)
    other[BLOCK_TOKENS - 1] = 2
    assert cache.admit(User(other)) == 0


def test_a_block_whose_hash_is_taken_stays_private() -> None:
    cache = Cache(8, weak_hash)
    first, second = User(text(1), "first"), User(text(2, 3), "second")
    for user in (first, second):
        cache.admit(user)
        cache.compute(user)
    assert cache.blocks.is_private(second.block_ids[0]) and cache.blocks.is_private(second.block_ids[1])
    cache.release(second)
    assert cache.blocks.num_cached == 0 and cache.blocks.num_held == 2


def test_of_two_equal_blocks_computed_at_once_the_second_stays_private() -> None:
    cache = Cache(8)
    first, second = User(text(1, 2), "first"), User(text(1, 3), "second")
    for user in (first, second):
        cache.admit(user)
    for user in (first, second):
        cache.compute(user)
    assert cache.blocks.is_private(second.block_ids[0])
    third = User(text(1, 3), "third")
    assert cache.admit(third) == 2 * BLOCK_TOKENS
    assert third.block_ids[:2] == [first.block_ids[0], second.block_ids[1]]


def test_held_blocks_below_an_evicted_one_become_private() -> None:
    cache = Cache(6)
    first, second = User(text(1), "first"), User(text(1, 3), "second")
    for user in (first, second):
        cache.admit(user)
    for user in (first, second):
        cache.compute(user)
    cache.release(first)
    assert cache.blocks.num_cached == 1 and cache.blocks.num_free == 2
    # second's block of 3 hangs below first's cached block of 1, the only one that can be evicted
    assert cache.admit(User(text(7, 8), "third")) == 0
    assert cache.blocks.num_cached == 0
    assert all(cache.blocks.is_private(block) for block in second.block_ids)
    second.token_ids += [99] * (BLOCK_TOKENS - 1)
    cache.compute(second)
    assert all(cache.blocks.is_private(block) for block in second.block_ids)
    cache.release(second)
    assert cache.blocks.num_cached == 0 and cache.blocks.num_free == 3


def removed_values(cache: Cache, since: int, chains: Iterable[list[int]]) -> list[tuple[int, ...]]:
    """Which blocks were removed, as the block values on the way to them."""
    names = {}
    for values in chains:
        hashes = chain_hashes(root_hash(FINGERPRINT, b""), text(*values))
        names.update({value: tuple(values[: depth + 1]) for depth, value in enumerate(hashes)})
    events = cache.blocks.events.after(since)
    assert events is not None
    return [names[event.block_hash] for event in events if isinstance(event, Removed)]


def test_eviction_takes_leaves_first_and_the_oldest_of_them() -> None:
    cache = Cache(7)
    chains = [[1, 2], [1, 3], [4]]
    for values in chains:
        cache.fill(User(text(*values)))
    # used again: the path to 2 is now the most recent
    cache.fill(User(text(1, 2)))
    assert cache.blocks.num_cached == 4
    since = cache.blocks.events.sequence
    big = User(text(*range(10, 16)))
    assert cache.admit(big) == 0
    assert removed_values(cache, since, chains) == [(1, 3), (4,), (1, 2), (1,)]


def test_a_block_in_use_is_never_evicted() -> None:
    cache = Cache(4)
    user = User(text(1, 2), "user")
    cache.admit(user)
    cache.compute(user)
    assert cache.admit(User(text(5), "other")) is None
    assert cache.blocks.extend(user) and not cache.blocks.extend(user)


def test_admission_counts_cached_blocks_that_it_shares_as_used() -> None:
    cache = Cache(4)
    cache.fill(User(text(1, 2, 3)))
    cache.fill(User(text(1, 2, 3)))
    assert cache.blocks.num_available == 4
    assert cache.admit(User(text(1, 2, 3, 4), "too big")) is None
    assert cache.admit(User(text(1, 2, 3), "reserve"), reserve=1) is None
    assert cache.admit(User(text(1, 2, 3), "fits")) == 3 * BLOCK_TOKENS


def test_a_refused_user_sees_what_was_registered_or_evicted_since() -> None:
    cache = Cache(5)
    waiting = User(text(1, 2, 3, 4), "waiting")
    running = User(text(1, 2), "running")
    cache.admit(running)
    cache.compute(running)
    assert cache.admit(waiting, reserve=3) is None
    cache.release(running)
    assert waiting.prefix_node is not None
    cache.fill(User(text(5, 6, 7, 8), "evictor"))
    assert cache.admit(waiting) == 0


def test_clear_forgets_all_and_is_refused_while_blocks_are_held() -> None:
    cache = Cache(4)
    user = User(text(1, 2))
    cache.fill(user)
    cache.admit(user)
    with pytest.raises(AssertionError, match="3 blocks are in use"):
        cache.blocks.clear()
    cache.release(user)
    cache.blocks.clear()
    cache.check()
    assert cache.blocks.num_free == 4 and cache.blocks.snapshot().stored == ()
    assert cache.admit(user) == 0


def test_stored_events_name_hash_parent_and_block() -> None:
    cache = Cache(8)
    tokens = text(1, 2)
    had = cache.fill(User(tokens, salt=b"s"))
    root = root_hash(FINGERPRINT, b"s")
    one, two = chain_hashes(root, tokens)
    assert cache.blocks.events.after(0) == [Stored(1, one, root, had[0]), Stored(2, two, one, had[1])]
    cache.blocks.clear()
    assert cache.blocks.events.after(2) == [Cleared(3)]


def test_unused_salts_leave_nothing_behind() -> None:
    cache = Cache(2)
    for value in range(100):
        cache.fill(User(text(1), salt=str(value).encode()))
    assert len(cache.blocks._tree._roots) == 1


def test_repeated_hits_do_not_grow_the_heap_of_leaves() -> None:
    cache = Cache(4)
    for _ in range(300):
        cache.fill(User(text(1)))
    assert len(cache.blocks._tree._leaves) <= 70


def test_check_finds_a_tree_that_disagrees_with_the_ledger() -> None:
    cache = Cache(4)
    cache.fill(User(text(1)))
    node = next(iter(cache.blocks._tree._by_block.values()))
    node.idle = False
    with pytest.raises(AccountingError):
        cache.check()


def apply(known: dict[BlockHash, int], events: Iterable[Event]) -> None:
    for event in events:
        if isinstance(event, Stored):
            assert event.block_hash not in known
            known[event.block_hash] = event.block_id
        elif isinstance(event, Removed):
            del known[event.block_hash]
        else:
            known.clear()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.booleans()), max_size=25),
    st.integers(0, 25),
)
def test_a_reader_of_events_knows_what_a_snapshot_says(work: list[tuple[list[int], bool]], late: int) -> None:
    cache = Cache(9)
    follower: dict[BlockHash, int] = {}
    newcomer: dict[BlockHash, int] = {}
    read = joined = 0
    kept: list[User] = []
    for count, (values, keep) in enumerate(work):
        if count == late:
            snapshot = cache.blocks.snapshot()
            apply(newcomer, snapshot.stored)
            joined = snapshot.sequence
        user = User(text(*values), name=str(count))
        while cache.admit(user) is None:
            cache.release(kept.pop(0))
        cache.compute(user)
        if keep:
            kept.append(user)
        else:
            cache.release(user)
        events = cache.blocks.events.after(read)
        assert events is not None and [event.sequence for event in events] == list(
            range(read + 1, cache.blocks.events.sequence + 1)
        )
        apply(follower, events)
        read = cache.blocks.events.sequence
        truth = {stored.block_hash: stored.block_id for stored in cache.blocks.snapshot().stored}
        assert follower == truth
    if len(work) > late:
        apply(newcomer, cache.blocks.events.after(joined) or [])
        assert newcomer == follower


def test_a_snapshot_lists_parents_before_their_children() -> None:
    cache = Cache(6)
    cache.fill(User(text(1, 2, 3)))
    cache.fill(User(text(4, 5)))
    cache.fill(User(text(1, 6)))
    known = {root_hash(FINGERPRINT, b"")}
    for stored in cache.blocks.snapshot().stored:
        assert stored.parent_hash in known
        known.add(stored.block_hash)
