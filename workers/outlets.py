"""Where the events of a rank go: to its sessions if it listens, else to its stdout; to both what concerns everyone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.messages import Ended, Event, Ready
from workers.stdio import EventWriter

if TYPE_CHECKING:
    from workers.server_thread import RankServer


class Outlets:
    """What the rank says, to whoever is meant. Any thread."""

    def __init__(self, writer: EventWriter) -> None:
        self._writer = writer
        self._server: RankServer | None = None

    def listens(self, server: RankServer) -> None:
        """From now on requests, and so their answers, are matters of the server."""
        self._server = server

    def emit(self, event: Event) -> None:
        """Queue one event; never blocks."""
        if self._server is None or isinstance(event, Ready | Ended):
            self._writer.emit(event)
        if self._server is not None:
            self._server.emit(event)

    def close(self, timeout_s: float) -> None:
        """Deliver what is queued, unless that takes longer than `timeout_s` in each of the two places."""
        if self._server is not None:
            self._server.close(timeout_s)
        self._writer.close(timeout_s)
