"""Which reservations a router still wants of a rank: what the rank may free, should a release never have reached it."""

from __future__ import annotations

from baleen.v1 import worker_pb2


class Wanted:
    """The reservations of one session. Each has a number from before it is asked for, since its answer may be lost."""

    def __init__(self) -> None:
        self._last = 0
        self._numbers: dict[str, int] = {}
        self._live: set[int] = set()

    def ask(self) -> int:
        """The number of a reservation that is about to be asked for."""
        self._last += 1
        self._live.add(self._last)
        return self._last

    def answered(self, number: int, ticket: str) -> None:
        """The rank has made it under this ticket; empty: it has not, or its answer was lost and nobody waits for it."""
        if ticket:
            self._numbers[ticket] = number
        else:
            self._live.discard(number)

    def over(self, ticket: str) -> None:
        """It has been handed to a request of the rank, or is given back."""
        self._live.discard(self._numbers.pop(ticket, 0))

    def query(self) -> worker_pb2.HealthQuery:
        """The question that is asked again and again, with what is wanted as of now."""
        return worker_pb2.HealthQuery(wanted_reservations=sorted(self._live), last_reservation=self._last)
