"""Several streams of pieces that become one, in the order in which they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from router.gateway.ask import Piece

MOST_WAITING = 16
"""Lists of pieces that wait to be taken; with more, no more news are taken from the routers."""


async def mixed(sources: Sequence[AsyncIterator[list[Piece]]]) -> AsyncIterator[list[Piece]]:
    """Everything that the sources give, until all have ended. Raises what the first of them to fail raises."""
    queue: asyncio.Queue[list[Piece] | BaseException | None] = asyncio.Queue(MOST_WAITING)
    readers = [asyncio.create_task(_read(source, queue)) for source in sources]
    left = len(readers)
    try:
        while left:
            news = await queue.get()
            if isinstance(news, BaseException):
                raise news
            if news is None:
                left -= 1
            else:
                yield news
    finally:
        for reader in readers:
            reader.cancel()


async def _read(source: AsyncIterator[list[Piece]], queue: asyncio.Queue[list[Piece] | BaseException | None]) -> None:
    try:
        async for pieces in source:
            await queue.put(pieces)
        await queue.put(None)
    except Exception as error:
        await queue.put(error)
