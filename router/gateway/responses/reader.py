"""POST /v1/responses: from body to ask and shape."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from baleen.errors import BaleenError, InvalidRequest
from router.gateway.ask import Ask, Piece, TokenUsage
from router.gateway.chat.request import read_ask
from router.gateway.dialect import Gateway
from router.gateway.frames import named_frame
from router.gateway.names import new_id
from router.gateway.refusal import error_object
from router.gateway.responses.answer import ResponseAnswer
from router.gateway.responses.request import base_response, to_chat

Json = dict[str, Any]

_OWN_NAMES = {"max_tokens": "max_output_tokens"}


class ResponseShape:
    """One response. Its last event tells the usage, so the end of the only answer waits for it."""

    def __init__(self, answer: ResponseAnswer) -> None:
        self.request_id = str(answer.response()["id"])
        self._answer = answer
        self._finish = ""

    def start(self) -> list[bytes]:
        """The response was created."""
        return _frames(self._answer.start())

    def take(self, piece: Piece) -> list[bytes]:
        """What was generated."""
        self._finish = piece.finish or self._finish
        return _frames(self._answer.feed(piece.events))

    def end(self, usage: TokenUsage) -> list[bytes]:
        """How it ended."""
        return _frames(self._answer.finish(self._finish, shown_usage(usage), int(time.time())))

    def fail(self, status: int, error: BaleenError) -> list[bytes]:
        """The response failed."""
        return _frames(self._answer.fail(error_object(error, status, "openai")["code"], str(error)))

    def whole(self, usage: TokenUsage) -> Json:
        """The response object."""
        self._answer.finish(self._finish, shown_usage(usage), int(time.time()))
        return self._answer.response()


async def read_response(body: Mapping[str, Any], gateway: Gateway) -> tuple[Ask, ResponseShape, bool]:
    """See dialect.Reader."""
    chat = to_chat(body)
    try:
        ask = await read_ask(chat, gateway.engine, gateway.names, gateway.limits, max_context=gateway.max_context)
    except InvalidRequest as error:
        raise _renamed(error) from error
    response_id = new_id("resp_")
    base = base_response(body, response_id=response_id, created_at=int(time.time()), model=ask.model)
    return ask, ResponseShape(ResponseAnswer(base, new_id)), bool(chat.get("stream"))


def shown_usage(usage: TokenUsage) -> Json:
    """Usage in this dialect's names."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def _renamed(error: InvalidRequest) -> InvalidRequest:
    """The same error, with the field's name in this dialect; messages of a chat come from the input."""
    if error.field.startswith("messages"):
        return error.renamed("input")
    field = _OWN_NAMES.get(error.field, error.field).replace(".function.", ".")
    if error.field.startswith("response_format"):
        field = "text.format"
    return type(error)(str(error).replace(error.field, field), field=field)


def _frames(events: list[Json]) -> list[bytes]:
    return [named_frame(event) for event in events]
