"""Answers in the chat dialect: chunks of a stream, or one completion, as DeepSeek and OpenAI have them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baleen.errors import BaleenError
from baleen.text.output_events import (
    Content,
    Event,
    Reasoning,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    message_of,
)
from baleen.text.tokenizer import Tokenizer
from router.gateway.ask import Ask, Piece, TokenUsage
from router.gateway.chat.logprobs import shown_logprobs
from router.gateway.frames import DONE, TextFrame, data_frame
from router.gateway.refusal import error_object

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkOptions:
    """What a client wants to see beside the answers. usage: in a chunk of its own, after the answers."""

    usage: bool = False
    usage_everywhere: bool = False
    token_ids: bool = False


class _Choice:
    """One answer, collected for the whole completion."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.token_ids: list[int] = []
        self.logprobs: list[Json] = []
        self.finish: str | None = None
        self.began = False
        self.frames: dict[type[Event], TextFrame] = {}


class ChatShape:
    """The answers to one ask. answer_id: of the completion, and of the request. created: seconds since 1970."""

    def __init__(
        self,
        ask: Ask,
        tokenizer: Tokenizer,
        *,
        answer_id: str,
        created: int,
        fingerprint: str,
        options: ChunkOptions,
        stream: bool,
    ) -> None:
        self.request_id = answer_id
        self._streams = stream
        self._ask = ask
        self._tokenizer = tokenizer
        self._options = options
        self._head = {"id": answer_id, "created": created, "model": ask.model, "system_fingerprint": fingerprint}
        self._choices = [_Choice() for _ in range(ask.sampling.n)]
        # chunks that differ in their text alone
        self._is_plain = not (options.usage_everywhere or options.token_ids) and ask.sampling.logprobs is None

    def start(self) -> list[bytes]:
        """Nothing: the first chunk of each answer says who speaks."""
        return []

    def take(self, piece: Piece) -> list[bytes]:
        """Chunks, one for each event; or nothing, and the piece is kept for the whole."""
        choice = self._choices[piece.index]
        choice.finish = piece.finish
        logprobs = shown_logprobs(piece, self._tokenizer) if self._ask.sampling.logprobs is not None else None
        if self._streams:
            if self._is_plain and choice.began and len(piece.events) == 1 and piece.finish is None:
                event = piece.events[0]
                if isinstance(event, (Content, Reasoning)):
                    return [self._text_frame(choice, piece, event)]
            return self._chunks(choice, piece, logprobs)
        choice.events += piece.events
        choice.token_ids += piece.token_ids
        choice.logprobs += logprobs or ()
        return []

    def end(self, usage: TokenUsage) -> list[bytes]:
        """The usage, if it was asked for, and the end."""
        if not self._options.usage:
            return [DONE]
        return [data_frame(self._object("chat.completion.chunk", []) | {"usage": shown_usage(usage, self._ask)}), DONE]

    def fail(self, status: int, error: BaleenError) -> list[bytes]:
        """The error in the stream."""
        return [data_frame({"error": error_object(error, status, "openai")}), DONE]

    def whole(self, usage: TokenUsage) -> Json:
        """The completion."""
        choices = [self._shown(index, choice) for index, choice in enumerate(self._choices)]
        whole = self._object("chat.completion", choices) | {"usage": shown_usage(usage, self._ask)}
        if self._options.token_ids:
            whole["prompt_token_ids"] = list(self._ask.prompt)
        return whole

    def _chunks(self, choice: _Choice, piece: Piece, logprobs: list[Json] | None) -> list[bytes]:
        deltas = [self._delta(choice, event) for event in piece.events if not isinstance(event, ToolCallEnd)]
        is_first = not choice.began
        if is_first:
            choice.began = True
            first: Json = {"role": "assistant", "content": ""}
            if self._ask.thinking:
                first = {"role": "assistant", "content": None, "reasoning_content": ""}
            deltas.insert(0, first)
        if (logprobs or (self._options.token_ids and piece.token_ids)) and not deltas and piece.finish is None:
            deltas.append({})
        chunks = [self._chunk(piece, delta) for delta in deltas]
        if piece.finish is not None:
            chunks.append(self._last(piece))
        if is_first and self._options.token_ids:
            chunks[0]["prompt_token_ids"] = list(self._ask.prompt)
        if chunks:
            # what belongs to all tokens of the piece goes with its last chunk
            choice_shown = chunks[-1]["choices"][0]
            choice_shown["logprobs"] = {"content": logprobs, "refusal": None} if logprobs else None
            if self._options.token_ids:
                choice_shown["token_ids"] = list(piece.token_ids)
        return [data_frame(one) for one in chunks]

    def _text_frame(self, choice: _Choice, piece: Piece, event: Content | Reasoning) -> bytes:
        """The chunk of a text and nothing else, as `_chunks` has it."""
        kind = type(event)
        frame = choice.frames.get(kind)
        if frame is None:
            frame = choice.frames[kind] = TextFrame(lambda text: self._chunk(piece, self._delta(choice, kind(text))))
        return frame(event.text)

    def _chunk(self, piece: Piece, delta: Json) -> Json:
        choice = {"index": piece.index, "delta": delta, "logprobs": None, "finish_reason": None}
        chunk = self._object("chat.completion.chunk", [choice])
        if self._options.usage_everywhere:
            chunk["usage"] = shown_usage(piece.usage, self._ask)
        elif self._options.usage:
            chunk["usage"] = None
        return chunk

    def _last(self, piece: Piece) -> Json:
        delta: Json = {"content": ""}
        if self._ask.thinking:
            delta["reasoning_content"] = None
        chunk = self._chunk(piece, delta)
        chunk["choices"][0]["finish_reason"] = piece.finish
        if not self._options.usage and all(choice.finish for choice in self._choices):
            chunk["usage"] = shown_usage(piece.usage, self._ask)
        return chunk

    def _delta(self, choice: _Choice, event: Event) -> Json:
        match event:
            case Reasoning(text):
                return {"content": None, "reasoning_content": text}
            case Content(text):
                return {"content": text, "reasoning_content": None} if self._ask.thinking else {"content": text}
            case ToolCallStart(index, name):
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": _call_id(index), "type": "function", "function": function}
                return {"tool_calls": [call]}
            case ToolCallArguments(index, fragment):
                return {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}
        raise AssertionError(event)

    def _shown(self, index: int, choice: _Choice) -> Json:
        whole = message_of(choice.events)
        message: Json = {"role": "assistant", "content": whole.content, "refusal": None, "annotations": []}
        if self._ask.thinking:
            message["reasoning_content"] = whole.reasoning
        if whole.tool_calls:
            message["tool_calls"] = [
                {
                    "id": _call_id(place),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for place, call in enumerate(whole.tool_calls)
            ]
        logprobs = {"content": choice.logprobs, "refusal": None} if self._ask.sampling.logprobs is not None else None
        shown = {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}
        return shown | ({"token_ids": choice.token_ids} if self._options.token_ids else {})

    def _object(self, kind: str, choices: Sequence[Json]) -> Json:
        return {**self._head, "object": kind, "choices": choices}


def _call_id(place: int) -> str:
    return f"call_{place:02d}_{secrets.token_hex(12)}"


def shown_usage(usage: TokenUsage, ask: Ask) -> Json:
    """Usage with the names of OpenAI and of DeepSeek."""
    shown: Json = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "prompt_cache_hit_tokens": usage.cached,
        "prompt_cache_miss_tokens": usage.prompt - usage.cached,
    }
    if ask.thinking is not None:
        shown["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    return shown


def chunk_options(given: Mapping[str, Any]) -> ChunkOptions:
    """Options of a checked body."""
    stream = given.get("stream_options") or {}
    return ChunkOptions(
        usage=bool(stream.get("include_usage")),
        usage_everywhere=bool(stream.get("continuous_usage_stats")),
        token_ids=bool(given.get("return_token_ids")),
    )
