"""Several asks of one request at the router together: their pieces come mixed, as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from router.gateway.ask import Ask, Piece, TokenUsage
from router.gateway.engine import Engine
from router.gateway.mixing import mixed
from router.gateway.running import Running


class Batch:
    """As Running is for one ask; answers are numbered on from one ask to the next."""

    def __init__(self, running: Sequence[Running], sizes: Sequence[int]) -> None:
        """sizes: how many answers each has."""
        self._running = running
        self._starts = [sum(sizes[:place]) for place in range(len(sizes))]

    @property
    def usage(self) -> TokenUsage:
        """Tokens of all answers so far."""
        each = [one.usage for one in self._running]
        return TokenUsage(
            sum(usage.prompt for usage in each),
            sum(usage.cached for usage in each),
            sum(usage.completion for usage in each),
            sum(usage.reasoning for usage in each),
        )

    async def admitted(self) -> None:
        """Wait until the router took all of them. Raises what it refused one with."""
        # all were asked already: in whatever order they are admitted, this waits for the last
        for one in self._running:
            await one.admitted()

    def pieces(self) -> AsyncIterator[list[Piece]]:
        """News of the answers as they come, all that there are at a time. Raises what the router failed with."""
        return self._running[0].pieces() if len(self._running) == 1 else self._mixed()

    async def _mixed(self) -> AsyncIterator[list[Piece]]:
        sources = [self._numbered(one, start) for one, start in zip(self._running, self._starts, strict=True)]
        async for pieces in mixed(sources):
            usage = self.usage
            yield [replace(piece, usage=usage) for piece in pieces]

    def close(self) -> None:
        """End what has not ended."""
        for one in self._running:
            one.close()

    async def _numbered(self, one: Running, start: int) -> AsyncIterator[list[Piece]]:
        async for pieces in one.pieces():
            yield [replace(piece, index=start + piece.index) for piece in pieces]


def start_batch(engine: Engine, asks: Sequence[Ask], *, request_id: str, tenant: str, traceparent: str) -> Batch:
    """Begin all of them; whoever has the result must close it. request_id: of the first, the others have a number."""
    running: list[Running] = []
    for place, ask in enumerate(asks):
        name = f"{request_id}-{place}" if place else request_id
        running.append(engine.start(ask, request_id=name, tenant=tenant, traceparent=traceparent))
    return Batch(running, [ask.sampling.n for ask in asks])
