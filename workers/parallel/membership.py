"""Who of the group is alive, from what was heard and when. Pure: no sockets, no clock of its own.

Times are seconds of the caller's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from baleen.ids import Incarnation
from workers.parallel.group import PeerHealth
from workers.parallel.messages import Heartbeat

_JOINING = Heartbeat(-1, "joining", 0.0, 0)


@dataclass(slots=True, eq=False)
class Peer:
    """Another rank, as last heard of."""

    rank: int
    incarnation: Incarnation
    heard_at: float
    beat: Heartbeat
    left: bool = False


class Membership:
    """The other ranks of this rank's group. Answers with the cause of the end, or None while all is well."""

    def __init__(self, peers: Mapping[int, Incarnation], *, timeout_s: float, now: float) -> None:
        self._peers = {rank: Peer(rank, incarnation, now, _JOINING) for rank, incarnation in peers.items()}
        self._timeout_s = timeout_s

    def heard(self, rank: int, now: float) -> None:
        """Something arrived from `rank`."""
        self._peers[rank].heard_at = now

    def beat(self, rank: int, beat: Heartbeat) -> None:
        """`rank` told what it is doing."""
        self._peers[rank].beat = beat

    def leave(self, rank: int) -> None:
        """`rank` said that it leaves: neither silence nor a closed connection is a fault any more."""
        self._peers[rank].left = True

    def closed(self, rank: int) -> str | None:
        """The control connection to `rank` ended."""
        return None if self._peers[rank].left else f"rank {rank} closed its connection (its process ended)"

    def gone(self, rank: int) -> str:
        """The cause when the step connection to `rank` ended and nothing else is known."""
        return f"rank {rank} left the group" if self._peers[rank].left else f"rank {rank} closed its step connection"

    def forgive(self, seconds: float, now: float) -> None:
        """This process did not run for so long, and perhaps its whole machine: do not count that as silence."""
        for peer in self._peers.values():
            peer.heard_at = min(peer.heard_at + seconds, now)

    def silence_ends_at(self) -> float:
        """When the peer that was silent longest is lost, if it stays silent."""
        return min((p.heard_at for p in self._peers.values() if not p.left), default=float("inf")) + self._timeout_s

    def silent(self, now: float) -> str | None:
        """The cause if some peer has been silent too long.

        Peers that are more than half way there are named too, since they very likely fell silent at the same event.
        """
        if now < self.silence_ends_at():
            return None
        quiet = {p.rank: now - p.heard_at for p in self._peers.values() if not p.left}
        lost = sorted(rank for rank, seconds in quiet.items() if seconds > self._timeout_s / 2)
        text = f"{name_ranks(lost)} silent for {max(quiet.values()):.1f} s (stopped, or unreachable)"
        if len(lost) == len(quiet) and len(lost) > 1:
            text += "; all others are, so this rank itself may be cut off"
        return text

    def behind(self, collectives: int) -> list[int]:
        """Ranks that have not entered the collective that this rank, with `collectives` entered, waits in."""
        return [p.rank for p in self._peers.values() if p.beat.collectives < collectives]

    def overdue(self, ranks: Iterable[int], *, where: str, timeout_s: float, now: float) -> str:
        """The cause when `ranks` are alive but did not come to `where` in time: what each says it is doing."""
        doing = []
        for rank in ranks:
            peer = self._peers[rank]
            seconds = peer.beat.seconds_in_phase + now - peer.heard_at
            doing.append(f"rank {rank} is at step {peer.beat.step} in phase {peer.beat.phase} for {seconds:.1f} s")
        if not doing:
            return f"{where} did not complete within {timeout_s:.1f} s although every rank is in it"
        return f"{name_ranks(ranks)} did not come to {where} within {timeout_s:.1f} s: " + "; ".join(doing)

    def health(self, now: float) -> tuple[PeerHealth, ...]:
        """All peers by rank."""
        return tuple(
            PeerHealth(
                rank=peer.rank,
                incarnation=peer.incarnation,
                step=peer.beat.step,
                phase=peer.beat.phase,
                seconds_in_phase=peer.beat.seconds_in_phase,
                silence_s=max(0.0, now - peer.heard_at),
            )
            for peer in self._peers.values()
        )


def name_ranks(ranks: Iterable[int]) -> str:
    """`rank 2`, or `ranks 1, 2, 3`."""
    names = [str(rank) for rank in ranks]
    return f"rank{'s' if len(names) > 1 else ''} {', '.join(names)}"
