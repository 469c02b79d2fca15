"""Who goes first, who gives way, and how much each may compute: the scheduler's rules as pure functions.

Order. A request's place is fixed when it arrives: arrival time + priority * aging_s. That is the same as letting
every request rise by one priority level per aging_s of age, since all age alike. So nothing ever needs re-sorting,
a request is overtaken only by those that arrive less than (its priority - theirs) * aging_s after it, and none
starves. Within one priority the order is first come, first served.

Admission is strict: if the first in the waiting queue does not fit, none behind it is tried. Letting small requests
pass would fill the pool better, but a steady stream of them would keep a big one out for ever.

Preemption. Only a running request that needs its next block takes blocks from others, and only from those after it
in the order, the last first; if it is itself the last, it steps back. The first running request therefore never
loses its blocks and always ends. Requests that wait never take blocks or places from running ones.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from operator import attrgetter

from baleen.blocks import blocks_for
from baleen.errors import CapacityError, InvalidRequest
from workers.engine.request import Request

_order = attrgetter("order")


def place_in_order(*, priority: int, arrival_s: float, sequence: int, aging_s: float) -> tuple[float, int]:
    """`Request.order` of a request that arrives now. `sequence` is the number of requests that came before it."""
    return arrival_s + priority * aging_s, sequence


def admission_reserve(num_blocks: int, num_running: int) -> int:
    """Blocks that must stay available after an admission, so that running requests do not preempt at once.

    One in a hundred of the pool, but no more than there are running requests; none when nothing runs.
    """
    return min(num_running, -(-num_blocks // 100))


def chunk_tokens(num_uncomputed: int, *, budget: int, max_chunk: int) -> int:
    """Tokens of a prefill that go into this step."""
    return min(num_uncomputed, budget, max_chunk)


def require_fit(request: Request, *, max_context: int, num_blocks: int) -> None:
    """Raise InvalidRequest or CapacityError if the request could not run even with the rank to itself."""
    tokens = f"prompt of {request.num_prompt} + max_tokens of {request.sampling.max_tokens} tokens"
    if request.max_tokens > max_context:
        raise InvalidRequest(f"{tokens} exceed the context limit of {max_context}", field="max_tokens")
    # the last token is emitted but never computed
    needed = blocks_for(max(request.max_tokens - 1, request.num_prompt))
    if needed > num_blocks:
        raise CapacityError(f"{tokens} need {needed} cache blocks, the whole pool has {num_blocks}")


class OrderedRequests:
    """Requests sorted by their order. Finding is logarithmic; adding and removing move pointers behind the place."""

    __slots__ = ("_requests",)

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __getitem__(self, place: int) -> Request:
        return self._requests[place]

    def __contains__(self, request: Request) -> bool:
        place = bisect_left(self._requests, request.order, key=_order)
        return place < len(self._requests) and self._requests[place] is request

    def add(self, request: Request) -> None:
        """Insert at its place."""
        insort(self._requests, request, key=_order)

    def remove(self, request: Request) -> None:
        """Take out; it must be there."""
        place = bisect_left(self._requests, request.order, key=_order)
        assert self._requests[place] is request
        del self._requests[place]
