"""Requests that must not be tried again: ranks died while they worked on them, more than once."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

from baleen.clock import Clock


def request_digest(token_ids: Sequence[int]) -> bytes:
    """16 bytes that stand for a prompt; nothing of it can be read back."""
    return blake2b(array("q", token_ids).tobytes(), digest_size=16, person=b"baleen.poison").digest()


class Quarantine:
    """Digests of prompts, each kept for a while; when full the oldest goes."""

    def __init__(self, clock: Clock, *, seconds: float, most: int = 1024) -> None:
        self._clock = clock
        self._seconds = seconds
        self._most = most
        self._until: OrderedDict[bytes, float] = OrderedDict()
        self.num_added = 0

    def add(self, digest: bytes) -> None:
        """Keep `digest` out from now on."""
        self.num_added += 1
        self._until[digest] = self._clock.now() + self._seconds
        self._until.move_to_end(digest)
        while len(self._until) > self._most:
            self._until.popitem(last=False)

    def remaining_s(self, digest: bytes) -> float:
        """Seconds for which `digest` is still kept out; 0 if it is not."""
        # the first is the oldest: all have the same term
        while self._until and next(iter(self._until.values())) <= self._clock.now():
            self._until.popitem(last=False)
        until = self._until.get(digest)
        return 0.0 if until is None else max(0.0, until - self._clock.now())
