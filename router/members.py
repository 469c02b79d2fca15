"""The ranks that a router knows: from their leases, their reports, and what the router itself has sent them.

One snapshot of it serves every policy. Losing Redis removes nobody: a rank then goes when its session fails.

Several routers do not tell each other what they send. Until a rank reports, after each of its steps, each router counts
only its own requests beside the last report, so that R routers send a rank with less to do than the others at most R
times what would fill the gap, and a few near ties; among equal ranks, which chance spreads, queues come to differ by no
more than 2 R requests. One report later all know. No block is booked twice: a rank refuses what it has no room for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from baleen.ids import Incarnation
from baleen.reports import Load, RankInfo
from router.index import PrefixIndex
from router.policy.snapshot import RankView, Snapshot

POLL_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Changes:
    """Ranks that came and went. A new life of a rank is a new incarnation, so both."""

    added: tuple[RankInfo, ...]
    removed: tuple[RankInfo, ...]


@dataclass(slots=True)
class _Sent:
    """What a rank was sent and has perhaps not reported yet. reports: those that arrived since."""

    tokens: int
    blocks: int
    reports: int = 0


@dataclass(slots=True, eq=False)
class _Member:
    info: RankInfo
    load: Load | None = None
    reachable: bool = False
    sent: dict[str, _Sent] = field(default_factory=dict)
    view: RankView | None = None


class Members:
    """All ranks by incarnation. A rank is in the snapshot while its session stands."""

    def __init__(self) -> None:
        self._members: dict[Incarnation, _Member] = {}
        self._snapshot: Snapshot | None = None
        self._touched: set[Incarnation] = set()

    def info(self, incarnation: Incarnation) -> RankInfo | None:
        """What a rank said of itself; None if it is not known, or no more."""
        member = self._members.get(incarnation)
        return member.info if member else None

    def __len__(self) -> int:
        return len(self._members)

    @property
    def pools(self) -> set[str]:
        """Of all ranks, those without a session included."""
        return {member.info.pool for member in self._members.values()}

    def apply(self, leases: Mapping[Incarnation, RankInfo]) -> Changes:
        """Take in all leases that are alive now.

        A rank without lease stays while its session stands: its lease may only be late, or Redis have come back empty.
        """
        added = [info for incarnation, info in leases.items() if incarnation not in self._members]
        for info in added:
            self._members[info.incarnation] = _Member(info)
        gone = [
            incarnation
            for incarnation, member in self._members.items()
            if incarnation not in leases and not member.reachable
        ]
        removed = [self._members.pop(incarnation).info for incarnation in gone]
        if added or removed:
            self._snapshot = None
        return Changes(tuple(added), tuple(removed))

    def introduced(self, info: RankInfo) -> None:
        """What a known rank says of itself on its session, before it is `reached`; it counts more than its lease."""
        self._members[info.incarnation].info = info

    def reached(self, incarnation: Incarnation) -> None:
        """The session to a rank stands."""
        self._set_reachable(incarnation, True)

    def lost(self, incarnation: Incarnation) -> None:
        """The session to a rank failed: nothing goes there until `reached`, and what was sent is forgotten."""
        self._set_reachable(incarnation, False)

    def report(self, incarnation: Incarnation, load: Load) -> None:
        """A rank's own figures.

        The first report after a request was sent may have been on its way already, so the router's own count of that
        request stands until the second.
        """
        member = self._members.get(incarnation)
        if member is None:
            return
        if member.load is None:
            self._snapshot = None
        member.load = load
        for request_id, sent in list(member.sent.items()):
            sent.reports += 1
            if sent.reports >= 2:
                del member.sent[request_id]
        self._touch(member)

    def sent(self, incarnation: Incarnation, request_id: str, *, tokens: int, blocks: int) -> None:
        """A request is on its way: `tokens` of its prompt to compute, `blocks` to take. Counts at once."""
        member = self._members.get(incarnation)
        if member is not None:
            member.sent[request_id] = _Sent(tokens, blocks)
            self._touch(member)

    def settled(self, incarnation: Incarnation, request_id: str) -> None:
        """A request that was sent has ended there, or never began."""
        member = self._members.get(incarnation)
        if member is not None and member.sent.pop(request_id, None) is not None:
            self._touch(member)

    def snapshot(self) -> Snapshot:
        """All ranks with a session and a report. The same object until something changes."""
        if self._snapshot is None:
            views = [_view(member) for member in self._members.values() if member.reachable]
            self._snapshot = Snapshot(tuple([view for view in views if view is not None]))
        elif self._touched:
            positions = self._snapshot.columns.positions
            views_of = {positions[name]: _view(self._members[name]) for name in self._touched if name in positions}
            self._snapshot = self._snapshot.replaced(
                {position: view for position, view in views_of.items() if view is not None}
            )
        self._touched.clear()
        return self._snapshot

    def _set_reachable(self, incarnation: Incarnation, reachable: bool) -> None:
        member = self._members.get(incarnation)
        if member is not None:
            member.reachable = reachable
            if not reachable:
                member.sent.clear()
                member.load = None
            self._snapshot = None
            self._touch(member)

    def _touch(self, member: _Member) -> None:
        member.view = None
        self._touched.add(member.info.incarnation)


def _view(member: _Member) -> RankView | None:
    if member.view is None and member.load is not None:
        info, load = member.info, member.load
        member.view = RankView(
            incarnation=info.incarnation,
            pool=info.pool,
            group=info.group,
            role=info.role,
            address=info.address,
            total_blocks=info.num_blocks,
            max_running=info.max_running,
            free_blocks=load.free_blocks,
            num_waiting=load.num_waiting,
            num_running=load.num_running,
            queued_tokens=load.queued_tokens,
            running_tokens=load.running_tokens,
            prefill_tokens_per_s=load.prefill_tokens_per_s,
            decode_tokens_per_s=load.decode_tokens_per_s,
            draining=load.draining,
            sent_requests=len(member.sent),
            sent_tokens=sum(sent.tokens for sent in member.sent.values()),
            sent_blocks=sum(sent.blocks for sent in member.sent.values()),
            model=info.model_fingerprint,
        )
    return member.view


async def watch(
    members: Members,
    index: PrefixIndex,
    on_change: Callable[[Changes], None],
    *,
    interval_s: float = POLL_INTERVAL_S,
) -> None:
    """Follow the leases until cancelled. While Redis gives no answer, everything stays as it is."""
    while True:
        leases = await index.members()
        if leases is not None:
            changes = members.apply(leases)
            if changes.added or changes.removed:
                on_change(changes)
        await asyncio.sleep(interval_s)
