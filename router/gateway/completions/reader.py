"""POST /v1/completions: from body to asks and shape, and the shape of the answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from baleen.errors import BaleenError
from baleen.text.output_events import Content
from baleen.text.tokenizer import Tokenizer
from router.gateway.ask import Ask, Piece, TokenUsage
from router.gateway.chat.answer import ChunkOptions, chunk_options, shown_usage
from router.gateway.completions.request import TextRequest, read_asks
from router.gateway.dialect import Gateway
from router.gateway.frames import DONE, data_frame
from router.gateway.names import new_id
from router.gateway.refusal import error_object

Json = dict[str, Any]


class _Choice:
    """One answer. offset: characters of it so far."""

    def __init__(self, echo: str) -> None:
        self.echo = echo
        self.pieces: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        self.finish: str | None = None
        self.offset = len(echo)


class TextShape:
    """The answers to a batch of prompts: those to the first prompt come first."""

    def __init__(
        self, request: TextRequest, tokenizer: Tokenizer, *, answer_id: str, fingerprint: str, options: ChunkOptions
    ) -> None:
        self.request_id = answer_id
        self._ask = request.asks[0]
        self._streams = request.streams
        self._tokenizer = tokenizer
        self._options = options
        self._head = {
            "id": answer_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._ask.model,
            "system_fingerprint": fingerprint,
        }
        self._asks = request.asks
        self._choices = [_Choice(echo) for echo in request.echoes for _ in range(self._ask.sampling.n)]

    def start(self) -> list[bytes]:
        """The prompts, where they are to be repeated."""
        return [
            data_frame(self._chunk(index, choice.echo)) for index, choice in enumerate(self._choices) if choice.echo
        ]

    def take(self, piece: Piece) -> list[bytes]:
        """A chunk; or nothing, and the piece is kept for the whole."""
        choice = self._choices[piece.index]
        text = "".join(event.text for event in piece.events if isinstance(event, Content))
        logprobs = self._logprobs(piece, choice) if self._ask.sampling.logprobs is not None else None
        choice.offset += len(text)
        choice.finish = piece.finish
        if self._streams:
            if not text and not logprobs and piece.finish is None:
                return []
            chunk = self._chunk(piece.index, text, logprobs, piece.finish)
            if self._options.token_ids:
                chunk["choices"][0]["token_ids"] = list(piece.token_ids)
            if self._options.usage_everywhere or (
                not self._options.usage and all(choice.finish for choice in self._choices)
            ):
                chunk["usage"] = shown_usage(piece.usage, self._ask)
            elif self._options.usage:
                chunk["usage"] = None
            return [data_frame(chunk)]
        choice.pieces.append(text)
        choice.token_ids += piece.token_ids
        for name, values in (logprobs or {}).items():
            choice.logprobs[name] += values
        return []

    def end(self, usage: TokenUsage) -> list[bytes]:
        """The usage, if it was asked for, and the end."""
        last = {**self._head, "choices": [], "usage": shown_usage(usage, self._ask)}
        return [data_frame(last), DONE] if self._options.usage else [DONE]

    def fail(self, status: int, error: BaleenError) -> list[bytes]:
        """The error in the stream."""
        return [data_frame({"error": error_object(error, status, "openai")}), DONE]

    def whole(self, usage: TokenUsage) -> Json:
        """The completions."""
        choices = []
        for index, choice in enumerate(self._choices):
            logprobs = choice.logprobs if self._ask.sampling.logprobs is not None else None
            shown = self._shown(index, choice.echo + "".join(choice.pieces), logprobs, choice.finish)
            if self._options.token_ids:
                prompt = self._asks[index // self._ask.sampling.n].prompt
                shown |= {"token_ids": choice.token_ids, "prompt_token_ids": list(prompt)}
            choices.append(shown)
        return {**self._head, "choices": choices, "usage": shown_usage(usage, self._ask)}

    def _chunk(self, index: int, text: str, logprobs: Json | None = None, finish: str | None = None) -> Json:
        return {**self._head, "choices": [self._shown(index, text, logprobs, finish)]}

    def _shown(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, piece: Piece, choice: _Choice) -> Json | None:
        """offset of a token: where its first whole character stands or will stand."""
        if not piece.logprobs:
            return None
        shown: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        offset = choice.offset
        for token_id, entry in zip(piece.token_ids, piece.logprobs, strict=False):
            text = self._text(token_id)
            shown["tokens"].append(text)
            shown["token_logprobs"].append(max(entry.logprob, -9999.0))
            shown["top_logprobs"].append({self._text(top.token_id): max(top.logprob, -9999.0) for top in entry.top})
            shown["text_offset"].append(offset)
            offset += len(text)
        return shown

    def _text(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode(errors="replace")


async def read_text(body: Mapping[str, Any], gateway: Gateway) -> tuple[tuple[Ask, ...], TextShape, bool]:
    """See dialect.Reader."""
    request = await read_asks(body, gateway)
    shape = TextShape(
        request,
        gateway.engine.tokenizer,
        answer_id=new_id("cmpl-"),
        fingerprint=gateway.fingerprint,
        options=chunk_options(body),
    )
    return request.asks, shape, request.streams
