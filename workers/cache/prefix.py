"""The prefix tree: which full blocks hold which tokens after which prefix, and which of them to give up first.

Children are found by their tokens and roots by their salt, never by a hash: a hit is equality of every token, and
another salt is another tree. Hashes only name blocks to the outside, where each name must be unique.

A node is idle while no request holds its block. Its `num_idle_children` counts children that are idle. Idle nodes
without idle children are the leaves that eviction takes, the least recently used first; a parent becomes a leaf
when its last idle child is gone. The heap of leaves has stale entries, recognised by their stamp.
"""

from __future__ import annotations

from collections.abc import Callable, KeysView
from heapq import heapify, heappop, heappush

from baleen.blocks import BlockHash, child_hash, root_hash
from workers.cache.events import EventLog, Snapshot, Stored
from workers.cache.ledger import AccountingError

HashBlock = Callable[[BlockHash, bytes], BlockHash]

EVENT_CAPACITY = 65_536


class Node:
    """One registered block, or a root, which has no block. `depth` counts the blocks from the root to here."""

    __slots__ = (
        "attached",
        "block_id",
        "children",
        "depth",
        "hash",
        "idle",
        "num_idle_children",
        "packed",
        "parent",
        "stamp",
        "stored",
    )

    def __init__(self, parent: Node | None, packed: bytes, block_hash: BlockHash, block_id: int) -> None:
        self.parent = parent
        self.packed = packed
        self.hash = block_hash
        self.block_id = block_id
        self.depth: int = parent.depth + 1 if parent else 0
        self.children: dict[bytes, Node] = {}
        self.attached = True
        self.idle = False
        self.num_idle_children = 0
        self.stamp = 0
        self.stored: Stored | None = None


class PrefixTree:
    """Registered blocks of one rank, by content. Who holds a block is the ledger's business."""

    def __init__(
        self, fingerprint: bytes, *, hash_block: HashBlock = child_hash, event_capacity: int = EVENT_CAPACITY
    ) -> None:
        self.events = EventLog(event_capacity)
        self._fingerprint = fingerprint
        self._hash_block = hash_block
        self._roots: dict[bytes, Node] = {}
        self._by_hash: dict[BlockHash, Node] = {}
        self._by_block: dict[int, Node] = {}
        self._leaves: list[tuple[int, Node]] = []
        self._num_idle = 0
        self._stamp = 0

    @property
    def blocks(self) -> KeysView[int]:
        """Ids of all registered blocks."""
        return self._by_block.keys()

    def is_idle(self, block_id: int) -> bool:
        """Whether a registered block is believed to be held by no request."""
        return self._by_block[block_id].idle

    def step(self, node: Node | None, salt: bytes, packed: bytes) -> Node | None:
        """The node after `node` (None: the start of `salt`) that holds exactly the tokens `packed`, if there is one."""
        if node is None:
            node = self._roots.get(salt)
        return node.children.get(packed) if node else None

    def register(self, node: Node | None, salt: bytes, packed: bytes, block_id: int) -> Node | None:
        """Offer a block that holds `packed` after `node` (None: at the start of `salt`).

        Returns the node of this content: a new one with this block, or one that another block registered before,
        and then this block stays private. None: its hash names another content, so it cannot be registered.
        """
        parent = node or self._roots.get(salt)
        if parent is None:
            parent = Node(None, salt, root_hash(self._fingerprint, salt), -1)
        known = parent.children.get(packed)
        if known is not None:
            return known
        block_hash = self._hash_block(parent.hash, packed)
        if block_hash in self._by_hash:
            return None
        if parent.parent is None:
            self._roots[salt] = parent
        child = Node(parent, packed, block_hash, block_id)
        parent.children[packed] = self._by_hash[block_hash] = self._by_block[block_id] = child
        child.stored = self.events.stored(block_hash, parent.hash, block_id)
        return child

    def claim(self, block_id: int) -> None:
        """A request holds this idle block again."""
        node = self._by_block[block_id]
        self._set_idle(node, idle=False)

    def retire(self, block_id: int) -> None:
        """Nobody holds this registered block any more; it was used last just now."""
        node = self._by_block[block_id]
        self._set_idle(node, idle=True)
        self._stamp += 1
        node.stamp = self._stamp
        self._push_if_leaf(node)

    def evict(self) -> list[int]:
        """Give up the least recently used leaf and return the idle blocks that this freed, at least one.

        Below the leaf there may be held blocks, of requests that computed its content themselves. They leave the
        tree with it and become private.
        """
        while self._leaves:
            stamp, node = heappop(self._leaves)
            if self._is_leaf(stamp, node):
                return self._remove(node)
        raise AccountingError(f"no leaf to evict among {self._num_idle} idle blocks")

    def clear(self) -> list[int]:
        """Forget everything and return the blocks that this freed; all must be idle."""
        assert self._num_idle == len(self._by_block)
        freed = list(self._by_block)
        for node in self._by_block.values():
            node.attached = False
        self._roots.clear()
        self._by_hash.clear()
        self._by_block.clear()
        self._leaves.clear()
        self._num_idle = 0
        self.events.cleared()
        return freed

    def snapshot(self) -> Snapshot:
        """Everything registered now, for a reader of events that fell behind."""
        stored = tuple(node.stored for node in self._by_hash.values() if node.stored)
        return Snapshot(self.events.sequence, stored)

    def check(self) -> None:
        """Full audit of links and counts. Raises AccountingError."""
        if len(self._by_hash) != len(self._by_block):
            raise AccountingError(f"{len(self._by_hash)} hashes for {len(self._by_block)} registered blocks")
        leaves = {(stamp, node.block_id) for stamp, node in self._leaves if self._is_leaf(stamp, node)}
        num_idle = 0
        for block_id, node in self._by_block.items():
            num_idle += node.idle
            linked = node.parent is not None and node.parent.children.get(node.packed) is node
            if not (linked and node.attached and node.block_id == block_id and self._by_hash.get(node.hash) is node):
                raise AccountingError(f"registered block {block_id} is not linked into the tree")
            if node.num_idle_children != sum(child.idle for child in node.children.values()):
                raise AccountingError(f"registered block {block_id} counts {node.num_idle_children} idle children")
            if node.idle and not node.num_idle_children and (node.stamp, block_id) not in leaves:
                raise AccountingError(f"leaf block {block_id} cannot be found for eviction")
        if num_idle != self._num_idle:
            raise AccountingError(f"{num_idle} idle blocks in the tree, {self._num_idle} counted")

    def _set_idle(self, node: Node, *, idle: bool) -> None:
        assert node.idle is not idle and node.parent is not None
        change = 1 if idle else -1
        node.idle = idle
        self._num_idle += change
        node.parent.num_idle_children += change
        if not idle:
            self._push_if_leaf(node.parent)

    def _is_leaf(self, stamp: int, node: Node) -> bool:
        return node.attached and node.idle and not node.num_idle_children and node.stamp == stamp

    def _push_if_leaf(self, node: Node) -> None:
        if not node.idle or node.num_idle_children:
            return
        heappush(self._leaves, (node.stamp, node))
        # rebuilding once most entries can be stale keeps the heap as small as the cache, at constant cost per push
        if len(self._leaves) > 2 * self._num_idle + 64:
            self._leaves = list({entry for entry in self._leaves if self._is_leaf(*entry)})
            heapify(self._leaves)

    def _remove(self, node: Node) -> list[int]:
        parent = node.parent
        assert parent is not None
        del parent.children[node.packed]
        parent.num_idle_children -= 1
        subtree = [node]
        for member in subtree:
            subtree.extend(member.children.values())
        freed: list[int] = []
        for member in reversed(subtree):
            member.attached = False
            del self._by_hash[member.hash], self._by_block[member.block_id]
            self.events.removed(member.hash)
            if member.idle:
                freed.append(member.block_id)
        self._num_idle -= len(freed)
        if parent.parent is None and not parent.children:
            parent.attached = False
            del self._roots[parent.packed]
        self._push_if_leaf(parent)
        return freed
