"""Blocks that arrived for requests which wait: kept for them until they start, or until the room is needed."""

from __future__ import annotations

from collections.abc import Callable

from baleen.ids import RequestId


class Pins:
    """For each submission that has any, how to let go of its pinned blocks, which stay cached as long as there is room.

    Pinned blocks must never keep each other's requests from starting: each of these needs one block more.
    """

    __slots__ = ("_unpin",)

    def __init__(self) -> None:
        self._unpin: dict[RequestId, Callable[[], None]] = {}

    def add(self, request_id: RequestId, unpin: Callable[[], None]) -> None:
        """Remember to call `unpin`, once."""
        assert request_id not in self._unpin
        self._unpin[request_id] = unpin

    def drop(self, request_id: RequestId) -> None:
        """Let go of one submission's blocks, if any are pinned."""
        unpin = self._unpin.pop(request_id, None)
        if unpin is not None:
            unpin()

    def drop_all(self) -> bool:
        """Let go of all pinned blocks; whether there were any."""
        dropped = bool(self._unpin)
        for request_id in list(self._unpin):
            self.drop(request_id)
        return dropped
