"""POST /v1/completions: from body to asks and shape, and the shape of the answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from baleen.errors import BaleenError
from baleen.text.output_events import Content
from baleen.text.tokenizer import Tokenizer
from baleen.v1 import common_pb2
from router.gateway.ask import Ask, Piece, TokenUsage
from router.gateway.chat.answer import ChunkOptions, chunk_options, shown_usage
from router.gateway.completions.logprobs import Columns, Echo, extend, no_columns
from router.gateway.completions.request import TextRequest, read_asks
from router.gateway.dialect import Gateway
from router.gateway.frames import DONE, data_frame
from router.gateway.names import new_id
from router.gateway.refusal import error_object

Json = dict[str, Any]


class _Choice:
    """One answer. text: what it begins with, its prompt or nothing. echo: the same with log-probabilities, or None."""

    def __init__(self, text: str, echo: Echo | None, tokenizer: Tokenizer) -> None:
        self.text = text
        self.echo = echo
        self.pieces: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs = no_columns()
        if echo is not None:
            extend(self.logprobs, echo.first[1])
        self.columns = Columns(tokenizer, len(text))
        self.finish: str | None = None


class TextShape:
    """The answers to a batch of prompts: those to the first prompt come first."""

    def __init__(
        self, request: TextRequest, tokenizer: Tokenizer, *, answer_id: str, fingerprint: str, options: ChunkOptions
    ) -> None:
        self.request_id = answer_id
        self._ask = request.asks[0]
        self._streams = request.streams
        self._options = options
        self._head = {
            "id": answer_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._ask.model,
            "system_fingerprint": fingerprint,
        }
        self._asks = request.asks
        self._choices = [
            _Choice(text, echo, tokenizer)
            for text, echo in _echoes(request, tokenizer)
            for _ in range(self._ask.sampling.n)
        ]

    def start(self) -> list[bytes]:
        """The prompts, where they are to be repeated; with log-probabilities their first tokens, which have none."""
        frames = []
        for first in range(0, len(self._choices), self._ask.sampling.n):
            choice = self._choices[first]
            if choice.echo is not None:
                frames += self._same_chunk(first, *choice.echo.first)
            elif choice.text:
                frames += self._same_chunk(first, choice.text, None)
        return frames

    def take(self, piece: Piece) -> list[bytes]:
        """A chunk; or nothing, and the piece is kept for the whole."""
        choice = self._choices[piece.index]
        if piece.prompt is not None:
            return self._take_prompt(piece.index, piece.prompt)
        text = "".join(event.text for event in piece.events if isinstance(event, Content))
        logprobs = choice.columns.sampled(piece.token_ids, piece.logprobs) if piece.logprobs else None
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
        extend(choice.logprobs, logprobs or {})
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
            shown = self._shown(index, choice.text + "".join(choice.pieces), logprobs, choice.finish)
            if self._options.token_ids:
                prompt = self._asks[index // self._ask.sampling.n].prompt
                shown |= {"token_ids": choice.token_ids, "prompt_token_ids": list(prompt)}
            choices.append(shown)
        return {**self._head, "choices": choices, "usage": shown_usage(usage, self._ask)}

    def _chunk(self, index: int, text: str, logprobs: Json | None = None, finish: str | None = None) -> Json:
        return {**self._head, "choices": [self._shown(index, text, logprobs, finish)]}

    def _shown(self, index: int, text: str, logprobs: Json | None, finish: str | None) -> Json:
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}

    def _take_prompt(self, first: int, news: common_pb2.PromptLogprobs) -> list[bytes]:
        """Of the prompt of answer `first`, and of those after it."""
        echo = self._choices[first].echo
        assert echo is not None
        text, logprobs = echo.take(news)
        if self._streams:
            return self._same_chunk(first, text, logprobs)
        for choice in self._choices[first : first + self._ask.sampling.n]:
            extend(choice.logprobs, logprobs)
        return []

    def _same_chunk(self, first: int, text: str, logprobs: Json | None) -> list[bytes]:
        """A chunk for each answer to the prompt of answer `first`."""
        return [data_frame(self._chunk(index, text, logprobs)) for index in range(first, first + self._ask.sampling.n)]


def _echoes(request: TextRequest, tokenizer: Tokenizer) -> list[tuple[str, Echo | None]]:
    """What the answers to each prompt begin with."""
    found: list[tuple[str, Echo | None]] = []
    for ask, echo in zip(request.asks, request.echoes, strict=True):
        if ask.sampling.prompt_logprobs is None:
            found.append((echo, None))
        else:
            num_hidden = len(tokenizer.decode(ask.prompt)) - len(echo)
            found.append((echo, Echo(echo, ask.prompt, tokenizer, num_hidden=num_hidden)))
    return found


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
