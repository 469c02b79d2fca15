"""The requests that wait: a queue in order, and siblings held back until their common prompt is computed."""

from __future__ import annotations

from collections.abc import Iterator

from baleen.ids import RequestId
from workers.engine.policy import OrderedRequests
from workers.engine.request import Request


class WaitingRequests:
    """Everything that waits on one rank.

    Of a submission with several completions one leads, and the others are held back: they do not queue, so they
    block nobody. Once the leader has computed the prompt they all join the queue and find it in the prefix cache. If
    the leader ends before that, the next one leads.
    """

    def __init__(self) -> None:
        self._queue = OrderedRequests()
        self._held_back: dict[RequestId, OrderedRequests] = {}
        self._num_held_back = 0
        self._num_tokens = 0

    def __len__(self) -> int:
        return len(self._queue) + self._num_held_back

    def __iter__(self) -> Iterator[Request]:
        yield from self._queue
        for siblings in self._held_back.values():
            yield from siblings

    @property
    def num_tokens(self) -> int:
        """Known tokens of all requests that wait."""
        return self._num_tokens

    def first(self) -> Request | None:
        """The one whose turn is next."""
        return self._queue[0] if self._queue else None

    def add(self, request: Request) -> None:
        """Let it queue."""
        self._queue.add(request)
        self._num_tokens += request.num_tokens

    def hold_back(self, request: Request) -> None:
        """Keep it aside until `admit_siblings` or `promote`."""
        self._held_back.setdefault(request.id, OrderedRequests()).add(request)
        self._num_held_back += 1
        self._num_tokens += request.num_tokens

    def remove(self, request: Request) -> None:
        """Take it out, queued or held back."""
        if request in self._queue:
            self._queue.remove(request)
        else:
            self._take_back(request)
        self._num_tokens -= request.num_tokens

    def is_held_back(self, request: Request) -> bool:
        """Whether it waits for its leader."""
        return request in self._held_back.get(request.id, ())

    def admit_siblings(self, request_id: RequestId) -> None:
        """Let all completions of a submission queue: their prompt is computed."""
        for request in tuple(self._held_back.get(request_id, ())):
            self._take_back(request)
            self._queue.add(request)

    def promote(self, request_id: RequestId) -> None:
        """Let the first held back completion of a submission lead."""
        siblings = self._held_back.get(request_id)
        if siblings:
            request = siblings[0]
            self._take_back(request)
            self._queue.add(request)

    def _take_back(self, request: Request) -> None:
        siblings = self._held_back[request.id]
        siblings.remove(request)
        self._num_held_back -= 1
        if not siblings:
            del self._held_back[request.id]
