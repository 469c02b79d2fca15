"""What a dialect of the gateway is: a reader of bodies, and a shape of answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from baleen.errors import BaleenError
from router.gateway.ask import Ask, Piece, TokenUsage
from router.gateway.chat.request import ChatLimits
from router.gateway.engine import Engine
from router.gateway.models import ModelNames

Json = dict[str, Any]


class Gateway(Protocol):
    """What a reader of bodies needs to know.

    max_context: tokens of prompt and answer together. fingerprint: names the weights.
    """

    @property
    def engine(self) -> Engine: ...  # noqa: D102

    @property
    def names(self) -> ModelNames: ...  # noqa: D102

    @property
    def limits(self) -> ChatLimits: ...  # noqa: D102

    @property
    def max_context(self) -> int: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102


class Shape(Protocol):
    """How one request's answers look. A frame is one server-sent event."""

    @property
    def request_id(self) -> str:
        """The id of the answer, and of the request wherever it is known."""
        ...

    def start(self) -> list[bytes]:
        """Frames before anything was generated."""
        ...

    def take(self, piece: Piece) -> list[bytes]:
        """Frames of a piece; a whole answer drops them."""
        ...

    def end(self, usage: TokenUsage) -> list[bytes]:
        """Frames after the last piece."""
        ...

    def fail(self, status: int, error: BaleenError) -> list[bytes]:
        """Frames of an error after the stream began."""
        ...

    def whole(self, usage: TokenUsage) -> Json:
        """The answer, once every piece was taken."""
        ...


class Reader(Protocol):
    """Reads a body. Raises InvalidRequest that names the field."""

    async def __call__(self, body: Mapping[str, Any], gateway: Gateway) -> tuple[Ask | tuple[Ask, ...], Shape, bool]:
        """The ask, or several that are answered together, the shape of the answers, and whether they are streamed."""
        ...
