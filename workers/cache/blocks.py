"""The blocks of one rank: ledger and prefix tree moved together, so that they never disagree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from baleen.blocks import BLOCK_TOKENS, blocks_for, child_hash, pack_block, shareable_blocks
from workers.cache.events import EventLog, Snapshot
from workers.cache.ledger import AccountingError, BlockState, Holder, Ledger
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


class BlockCache:
    """Blocks 0 to num_blocks - 1 of one rank.

    fingerprint: names the model and the record format in block hashes.
    """

    def __init__(self, num_blocks: int, fingerprint: bytes, *, hash_block: HashBlock = child_hash) -> None:
        self._ledger = Ledger(num_blocks)
        self._tree = PrefixTree(fingerprint, hash_block=hash_block)

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
        """Blocks of running requests."""
        return self._ledger.num_held

    @property
    def num_cached(self) -> int:
        """Blocks that only the prefix tree keeps."""
        return self._ledger.num_cached

    @property
    def num_available(self) -> int:
        """Blocks that a request could get: free ones, and cached ones by eviction."""
        return self._ledger.num_free + self._ledger.num_cached

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
        path: list[Node] = []
        while node is not None and node.parent is not None:
            path.append(node)
            node = node.parent
        num_new = num_total - len(path)
        num_idle = sum(member.idle for member in path)
        if num_new + num_idle + reserve > self.num_available:
            return None
        # the shared blocks first: an idle one could otherwise be evicted to make room for the new ones
        for member in reversed(path):
            if self._ledger.share(user.key, member.block_id):
                self._tree.claim(member.block_id)
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
        for block_id in self._ledger.release(user.key, keep=self._tree.blocks):
            self._tree.retire(block_id)
        user.block_ids.clear()

    def clear(self) -> None:
        """Forget the prefix tree; only legal while no user holds blocks, whose content could be registered later."""
        assert not self.num_held, f"{self.num_held} blocks are held, the prefix tree cannot be cleared"
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
        self._ledger.check({holder: user.block_ids for holder, user in live.items()}, self._tree.blocks)
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
        limit = shareable_blocks(len(user.token_ids))
        assert node is None or node.depth <= limit
        for depth in range(node.depth if node else 0, limit):
            start = depth * BLOCK_TOKENS
            child = self._tree.step(node, user.salt, pack_block(user.token_ids[start : start + BLOCK_TOKENS]))
            if child is None:
                break
            node = child
        user.prefix_node = node
        return node

    def _take(self, holder: Holder) -> int:
        if not self._ledger.num_free:
            for block_id in self._tree.evict():
                self._ledger.reclaim(block_id)
        return self._ledger.take(holder)
