"""POST /v1/messages and /v1/messages/count_tokens: from body to ask and shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baleen.errors import BaleenError, InvalidRequest
from router.gateway.ask import Ask, Piece, TokenUsage
from router.gateway.chat.request import read_ask
from router.gateway.dialect import Gateway
from router.gateway.frames import named_frame
from router.gateway.messages.answer import MessageAnswer
from router.gateway.messages.request import COUNTED_FIELDS, to_chat
from router.gateway.names import new_id
from router.gateway.refusal import error_object

Json = dict[str, Any]

OTHER_NAMES = "deepseek-chat"
"""What an unknown name of a model means under /anthropic, as DeepSeek has it."""

_OWN_NAMES = {"stop": "stop_sequences"}


class MessageShape:
    """One message."""

    def __init__(self, answer: MessageAnswer) -> None:
        self.request_id = str(answer.message()["id"])
        self._answer = answer
        self._finish = ""
        self._stop: str | None = None

    def start(self) -> list[bytes]:
        """The message begins."""
        return _frames(self._answer.start())

    def take(self, piece: Piece) -> list[bytes]:
        """What was generated."""
        self._finish = piece.finish or self._finish
        self._stop = piece.stopped_by
        return _frames(self._answer.feed(piece.events))

    def end(self, usage: TokenUsage) -> list[bytes]:
        """How it ended."""
        return _frames(self._answer.finish(self._finish, shown_usage(usage), self._stop))

    def fail(self, status: int, error: BaleenError) -> list[bytes]:
        """The error in the stream."""
        return _frames([{"type": "error", "error": error_object(error, status, "anthropic")}])

    def whole(self, usage: TokenUsage) -> Json:
        """The message."""
        self._answer.finish(self._finish, shown_usage(usage), self._stop)
        return self._answer.message()


async def read_message(body: Mapping[str, Any], gateway: Gateway) -> tuple[Ask, MessageShape, bool]:
    """See dialect.Reader."""
    chat = to_chat(body)
    ask = await _ask(chat, gateway)
    usage = shown_usage(TokenUsage(len(ask.prompt), 0, 0, 0))
    return ask, MessageShape(MessageAnswer(ask.model, usage, new_id)), bool(chat.get("stream"))


async def read_message_to_any(body: Mapping[str, Any], gateway: Gateway) -> tuple[Ask, MessageShape, bool]:
    """As read_message, for the paths where DeepSeek takes names that it does not know for deepseek-chat."""
    return await read_message(known_model(body, gateway), gateway)


def known_model(body: Mapping[str, Any], gateway: Gateway) -> Mapping[str, Any]:
    """The body, with a name that is none of the model's replaced by deepseek-chat."""
    name = body.get("model")
    return {**body, "model": OTHER_NAMES} if isinstance(name, str) and not gateway.names.knows(name) else body


async def count_tokens(body: Mapping[str, Any], gateway: Gateway) -> Json:
    """Tokens of the prompt that a message would have. Raises InvalidRequest that names the field."""
    ask = await _ask(to_chat(body, COUNTED_FIELDS), gateway)
    return {"input_tokens": len(ask.prompt)}


def shown_usage(usage: TokenUsage) -> Json:
    """Usage in this dialect's names: input_tokens are those that were not cached."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "cache_creation": None,
        "server_tool_use": None,
        "service_tier": "standard",
        "inference_geo": None,
    }


async def _ask(chat: Json, gateway: Gateway) -> Ask:
    try:
        return await read_ask(chat, gateway.engine, gateway.names, gateway.limits, max_context=gateway.max_context)
    except InvalidRequest as error:
        raise _renamed(error) from error


def _renamed(error: InvalidRequest) -> InvalidRequest:
    """The same error, with the field's name in this dialect."""
    field = _OWN_NAMES.get(error.field, error.field)
    if error.field.startswith("response_format"):
        field = "output_config.format"
    elif error.field.endswith(".function.parameters"):
        field = error.field.replace(".function.parameters", ".input_schema")
    return type(error)(str(error).replace(error.field, field), field=field)


def _frames(events: list[Json]) -> list[bytes]:
    return [named_frame(event) for event in events]
