"""A fake rank that others fetch from, and that misbehaves as a test says; and an index that knows who holds what."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from baleen.blocks import BlockHash, shareable_blocks
from baleen.errors import BaleenError
from baleen.ids import Incarnation
from baleen.v1 import worker_pb2
from baleen.wire.errors import abort
from tests.support.fake_rank import FakeRank
from tests.support.router_client import Client


class FetchingRank(FakeRank):
    """Blocks that it is asked for arrive at `destination`, which finds so many more from then on.

    fetchable: leading blocks of any prompt that it has. most_pushed: more are not taken. refuse_fetch: answer with this
    error. hang_fetch: give no answer; `withdrawn` counts the calls that were then given up.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.fetchable = 0
        self.most_pushed = 1000
        self.refuse_fetch: BaleenError | None = None
        self.hang_fetch = False
        self.destination: FakeRank | None = None
        self.fetches: list[worker_pb2.FetchRequest] = []
        self.withdrawn = 0

    async def Fetch(self, request: worker_pb2.FetchRequest, context: Any) -> worker_pb2.FetchResponse:
        self.fetches.append(request)
        if self.refuse_fetch is not None:
            await abort(context, self.refuse_fetch)
        if self.hang_fetch:
            try:
                await asyncio.Event().wait()
            finally:
                self.withdrawn += 1
        wanted = shareable_blocks(len(request.token_ids))
        found = min(self.fetchable, wanted)
        pushed = max(0, min(found - request.destination.first_block, self.most_pushed))
        if self.destination is not None:
            self.destination.num_held += pushed
            self.destination.num_cached_tokens = 64 * self.destination.num_held
        complete = request.destination.first_block + pushed == wanted
        return worker_pb2.FetchResponse(num_blocks=found, num_pushed=pushed, failure="" if complete else "not all")


class KnownPrefixes:
    """An index that says of any prompt what a test told it."""

    def __init__(self, held: Mapping[FakeRank, int]) -> None:
        self._held = {Incarnation(rank.info.incarnation): blocks for rank, blocks in held.items()}

    async def prefixes(self, hashes: Sequence[BlockHash]) -> Mapping[Incarnation, int]:
        return {name: min(blocks, len(hashes)) for name, blocks in self._held.items()}


def knows(client: Client, held: Mapping[FakeRank, int]) -> None:
    """From now on the client's router believes that these ranks hold so many leading blocks of any prompt."""
    client.router._proxy._chooser._index = KnownPrefixes(held)
