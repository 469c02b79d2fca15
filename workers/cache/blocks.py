"""The blocks of one rank: ledger and prefix tree moved together, so that they never disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from baleen.blocks import BLOCK_TOKENS, blocks_for, child_hash, pack_block, shareable_blocks
from workers.cache.events import EventLog, Snapshot
from workers.cache.ledger import AccountingError, BlockState, Holder, HolderKind, Ledger
from workers.cache.prefix import HashBlock, Node, PrefixTree


class BlockUser(Protocol):
    """What the cache reads and writes of a request.

    Only this cache changes `block_ids` and `prefix_node`, the deepest node of the prefix tree known to agree with the
    request's tokens (None: none yet).
    """

    block_ids: list[int]
    prefix_node: Node | None

    @property
    def key(self) -> Holder:
        """Name in the ledger."""
        ...

    @property
    def salt(self) -> bytes:
        """Only users of the same salt share blocks."""
        ...

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output."""
        ...

    @property
    def num_computed(self) -> int:
        """Tokens whose cache records are written."""
        ...

    @property
    def num_shareable_blocks(self) -> int:
        """Most leading blocks that it may take from the prefix tree."""
        ...


@dataclass(slots=True, eq=False)
class Arrival:
    """The whole blocks of a prompt that a reservation keeps together: those at hand, pinned, and those on their way.

    packed: tokens of each block. block_ids: first the ones at hand, which end at `node` of the prefix tree, then the
    ones that a transfer writes.
    """

    holder: Holder
    salt: bytes
    packed: tuple[bytes, ...]
    block_ids: list[int]
    node: Node | None
    num_at_hand: int


class BlockCache:
    """Blocks 0 to num_blocks - 1 of one rank.

    fingerprint: names the model and the record format in block hashes.
    """

    def __init__(self, num_blocks: int, fingerprint: bytes, *, hash_block: HashBlock = child_hash) -> None:
        self._ledger = Ledger(num_blocks)
        self._tree = PrefixTree(fingerprint, hash_block=hash_block)
        self._arrivals: dict[Holder, Arrival] = {}
        self._loans: dict[Holder, list[int]] = {}
        self.num_evicted = 0

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool."""
        return self._ledger.num_blocks

    @property
    def num_free(self) -> int:
        """Blocks with nothing in them."""
        return self._ledger.num_free

    @property
    def num_held(self) -> int:
        """Blocks of running requests, and those that reservations pin."""
        return self._ledger.num_held

    @property
    def num_lent(self) -> int:
        """Blocks that only transfers to other ranks keep."""
        return self._ledger.num_lent

    @property
    def num_arriving(self) -> int:
        """Blocks set aside for transfers from other ranks."""
        return self._ledger.num_arriving

    @property
    def num_cached(self) -> int:
        """Blocks that only the prefix tree keeps."""
        return self._ledger.num_cached

    @property
    def num_available(self) -> int:
        """Blocks that a request could get: free ones, and cached ones by eviction."""
        return self._ledger.num_free + self._ledger.num_cached

    @property
    def is_encumbered(self) -> bool:
        """Whether reservations or transfers keep blocks, so that they come back without any request's doing."""
        return bool(self._arrivals or self._loans)

    @property
    def events(self) -> EventLog:
        """What became shareable and ceased to be."""
        return self._tree.events

    def admit(self, user: BlockUser, *, reserve: int) -> int | None:
        """Give a user without blocks all that its tokens need, shared where the prefix tree has them.

        Returns the number of leading tokens that are already computed; at least one is not. None, and no change, if
        it does not fit while `reserve` blocks stay available.
        """
        assert not user.block_ids
        node = self._match(user)
        num_total = blocks_for(len(user.token_ids))
        if num_total - (node.depth if node else 0) + reserve > self.num_available:
            return None
        path = _path_to(node)
        num_new = num_total - len(path)
        num_idle = sum(member.idle for member in path)
        if num_new + num_idle + reserve > self.num_available:
            return None
        # the shared blocks first: an idle one could otherwise be evicted to make room for the new ones
        for member in path:
            self._share(user.key, member.block_id)
            user.block_ids.append(member.block_id)
        for _ in range(num_new):
            user.block_ids.append(self._take(user.key))
        return len(path) * BLOCK_TOKENS

    def extend(self, user: BlockUser) -> bool:
        """Give a user one block more; False, and no change, if there is none."""
        if not self.num_available:
            return False
        user.block_ids.append(self._take(user.key))
        return True

    def register_computed(self, user: BlockUser) -> None:
        """Make the user's newly full and computed blocks shareable.

        A block whose content is registered already stays private. So do all further blocks of a user whose place in
        the tree was given up meanwhile, which happens only below such a private block.
        """
        node = user.prefix_node
        depth = node.depth if node else 0
        num_full = user.num_computed // BLOCK_TOKENS
        while depth < num_full and (node is None or node.attached):
            start = depth * BLOCK_TOKENS
            packed = pack_block(user.token_ids[start : start + BLOCK_TOKENS])
            node = self._tree.register(node, user.salt, packed, user.block_ids[depth])
            if node is None:
                return
            user.prefix_node = node
            depth += 1

    def release(self, user: BlockUser) -> None:
        """Take all blocks from a user; registered ones that nobody else holds stay cached, the others become free."""
        self._let_go(user.key)
        user.block_ids.clear()

    def expect(self, holder: Holder, salt: bytes, token_ids: Sequence[int], *, reserve: int) -> Arrival | None:
        """Pin the blocks of a prompt that are cached, and set others aside for those that are missing.

        Concerns the blocks that a request of `token_ids` could share. None, and no change, if they do not fit while
        `reserve` blocks stay available.
        """
        packed = _pack_shareable(token_ids)
        node = self._walk(salt, packed)
        path = _path_to(node)
        num_new = len(packed) - len(path)
        if num_new + sum(member.idle for member in path) + reserve > self.num_available:
            return None
        for member in path:
            self._share(holder, member.block_id)
        arrival = Arrival(holder, salt, packed, [member.block_id for member in path], node, len(path))
        for _ in range(num_new):
            self._make_room()
            arrival.block_ids.append(self._ledger.expect(holder))
        self._arrivals[holder] = arrival
        return arrival

    def find_prefix(self, salt: bytes, token_ids: Sequence[int]) -> list[int]:
        """The leading blocks of a prompt that are cached, of those that a request of `token_ids` could share."""
        return [member.block_id for member in _path_to(self._walk(salt, _pack_shareable(token_ids)))]

    def land(self, arrival: Arrival) -> bool:
        """The next block that `arrival` expects is written and verified: share it from the prefix tree, pinned.

        Where the tree has this content already, that block is pinned instead and the new one becomes free. False: it
        cannot be registered, so that neither it nor those after it are of use.
        """
        place = arrival.num_at_hand
        block_id = self._ledger.land(arrival.holder)
        assert block_id == arrival.block_ids[place]
        node = self._tree.register(arrival.node, arrival.salt, arrival.packed[place], block_id)
        if node is None or node.block_id != block_id:
            self._ledger.give_back(arrival.holder, block_id, keep=())
        if node is None:
            del arrival.block_ids[place]
            return False
        if node.block_id != block_id:
            self._share(arrival.holder, node.block_id)
            arrival.block_ids[place] = node.block_id
        arrival.node = node
        arrival.num_at_hand += 1
        return True

    def give_up(self, arrival: Arrival) -> None:
        """Free what has not landed; legal only once no transfer can write it any more. What is at hand stays pinned."""
        self._ledger.give_up(arrival.holder)
        del arrival.block_ids[arrival.num_at_hand :]

    def unpin(self, holder: Holder) -> None:
        """Let go of what a reservation has at hand: it stays cached as long as there is room."""
        arrival = self._arrivals.pop(holder)
        assert arrival.num_at_hand == len(arrival.block_ids), f"{holder} still expects blocks"
        self._let_go(holder)

    def lend(self, holder: Holder, block_id: int) -> None:
        """Keep a computed block as it is, whatever happens to its request, until it is returned or recalled."""
        assert holder.kind is HolderKind.TRANSFER
        self._share(holder, block_id)
        self._loans.setdefault(holder, []).append(block_id)

    def return_loan(self, holder: Holder) -> None:
        """The transfer does not need the first block that it was lent any more."""
        loans = self._loans[holder]
        block_id = loans.pop(0)
        if not loans:
            del self._loans[holder]
        if self._ledger.give_back(holder, block_id, keep=self._tree.blocks):
            self._tree.retire(block_id)

    def recall(self, holder: Holder) -> None:
        """Take back everything lent to a transfer, which reads it no more. A transfer without loans is no error."""
        self._loans.pop(holder, None)
        self._let_go(holder)

    def clear(self) -> None:
        """Forget the prefix tree; only legal while no user holds blocks, whose content could be registered later."""
        busy = self.num_held + self.num_lent + self.num_arriving
        assert not busy, f"{busy} blocks are in use, the prefix tree cannot be cleared"
        for block_id in self._tree.clear():
            self._ledger.reclaim(block_id)

    def is_private(self, block_id: int) -> bool:
        """Whether one request alone holds the block and the prefix tree does not know it, so that it may be written."""
        return self._ledger.references(block_id) == 1 and block_id not in self._tree.blocks

    def snapshot(self) -> Snapshot:
        """Everything that can be shared now."""
        return self._tree.snapshot()

    def check_counts(self) -> None:
        """Constant-time audit. Raises AccountingError."""
        self._ledger.check_counts()

    def check(self, live: Mapping[Holder, BlockUser]) -> None:
        """Full audit against the users that may hold blocks. Raises AccountingError that names who leaks."""
        believed: dict[Holder, Sequence[int]] = {holder: user.block_ids for holder, user in live.items()}
        believed |= {holder: arrival.block_ids for holder, arrival in self._arrivals.items()}
        self._ledger.check(believed | self._loans, self._tree.blocks)
        self._tree.check()
        for block_id in self._tree.blocks:
            if self._tree.is_idle(block_id) is not (self._ledger.state(block_id) is BlockState.CACHED):
                raise AccountingError(
                    f"block {block_id} is {self._ledger.state(block_id).value}, "
                    f"idle in the prefix tree: {self._tree.is_idle(block_id)}"
                )

    def _match(self, user: BlockUser) -> Node | None:
        node = user.prefix_node
        if node is not None and not node.attached:
            node = None
        limit = user.num_shareable_blocks
        assert node is None or node.depth <= limit
        for depth in range(node.depth if node else 0, limit):
            start = depth * BLOCK_TOKENS
            child = self._tree.step(node, user.salt, pack_block(user.token_ids[start : start + BLOCK_TOKENS]))
            if child is None:
                break
            node = child
        user.prefix_node = node
        return node

    def _walk(self, salt: bytes, packed: Sequence[bytes]) -> Node | None:
        """The deepest node that agrees with these blocks."""
        node: Node | None = None
        for block in packed:
            child = self._tree.step(node, salt, block)
            if child is None:
                break
            node = child
        return node

    def _share(self, holder: Holder, block_id: int) -> None:
        if self._ledger.share(holder, block_id):
            self._tree.claim(block_id)

    def _let_go(self, holder: Holder) -> None:
        for block_id in self._ledger.release(holder, keep=self._tree.blocks):
            self._tree.retire(block_id)

    def _take(self, holder: Holder) -> int:
        self._make_room()
        return self._ledger.take(holder)

    def _make_room(self) -> None:
        if not self._ledger.num_free:
            for block_id in self._tree.evict():
                self._ledger.reclaim(block_id)
                self.num_evicted += 1


def _pack_shareable(token_ids: Sequence[int]) -> tuple[bytes, ...]:
    """The whole blocks of a prompt that another request can share."""
    return tuple(
        pack_block(token_ids[place * BLOCK_TOKENS : (place + 1) * BLOCK_TOKENS])
        for place in range(shareable_blocks(len(token_ids)))
    )


def _path_to(node: Node | None) -> list[Node]:
    """The nodes with blocks from the root down to `node`."""
    path: list[Node] = []
    while node is not None and node.parent is not None:
        path.append(node)
        node = node.parent
    return path[::-1]
