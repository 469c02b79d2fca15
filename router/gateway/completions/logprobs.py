"""Log-probabilities in the dialect of text completions: lists beside each other, with one element for each token."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from baleen.text.tokenizer import Tokenizer
from baleen.v1 import common_pb2

Json = dict[str, Any]

_LEAST = -9999.0
"""JSON has no infinity."""


def no_columns() -> Json:
    """The lists of no token."""
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def extend(columns: Json, more: Json) -> None:
    """Put the tokens of `more` after those of `columns`."""
    for name, values in more.items():
        columns[name] += values


class Columns:
    """Tokens of one text, as they come. offset: of the next one, where its first whole character will stand."""

    def __init__(self, tokenizer: Tokenizer, offset: int) -> None:
        """offset: of the first token; where it is negative, so many characters are no part of the text."""
        self._tokenizer = tokenizer
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def offset(self) -> int:
        """Characters of the text before the next token."""
        return max(0, self._offset)

    def add(
        self,
        token_ids: Sequence[int],
        logprobs: Iterable[float | None],
        tops: Iterable[Iterable[tuple[int, float]] | None],
    ) -> Json:
        """The lists of the next tokens; tops: ids and log-probabilities of the most likely ones, best first."""
        found = no_columns()
        for token_id, logprob, top in zip(token_ids, logprobs, tops, strict=False):
            data = self._tokenizer.token_bytes(token_id)
            found["tokens"].append(data.decode(errors="replace"))
            found["token_logprobs"].append(None if logprob is None else max(logprob, _LEAST))
            found["top_logprobs"].append(None if top is None else self._by_text(top))
            found["text_offset"].append(self.offset)
            self._offset += len(self._decoder.decode(data))
        return found

    def sampled(self, token_ids: Sequence[int], entries: Sequence[common_pb2.PositionLogprobs]) -> Json:
        """The lists of the next tokens of an answer."""
        return self.add(
            token_ids,
            (entry.logprob for entry in entries),
            ([(top.token_id, top.logprob) for top in entry.top] for entry in entries),
        )

    def _by_text(self, top: Iterable[tuple[int, float]]) -> dict[str, float]:
        """By text; where several tokens have the same one, the likeliest."""
        shown: dict[str, float] = {}
        for token_id, logprob in top:
            shown.setdefault(self._tokenizer.token_bytes(token_id).decode(errors="replace"), max(logprob, _LEAST))
        return shown


class Echo:
    """A prompt that is repeated with its log-probabilities, part by part: each part is a text and its lists.

    first: the first token, which has no log-probability, since nothing is before it.
    """

    def __init__(self, text: str, token_ids: Sequence[int], tokenizer: Tokenizer, *, num_hidden: int) -> None:
        """num_hidden: characters at the start of the tokens that are no part of the text."""
        self._text = text
        self._token_ids = token_ids
        self._columns = Columns(tokenizer, -num_hidden)
        self._num_tokens = 0
        self._num_shown = 0
        self.first = self._part(1, [None], [None])

    def take(self, news: common_pb2.PromptLogprobs) -> tuple[str, Json]:
        """The tokens that these belong to, which are the next ones."""
        num_tokens = len(news.logprobs)
        assert news.position == self._num_tokens
        num_top = len(news.top_token_ids) // num_tokens
        pairs = list(zip(news.top_token_ids, news.top_logprobs, strict=True))
        tops = [pairs[start : start + num_top] for start in range(0, num_tokens * num_top, num_top or 1)]
        return self._part(num_tokens, news.logprobs, tops or [()] * num_tokens)

    def _part(
        self, num_tokens: int, logprobs: Iterable[float | None], tops: Iterable[Iterable[tuple[int, float]] | None]
    ) -> tuple[str, Json]:
        start, end = self._num_tokens, self._num_tokens + num_tokens
        columns = self._columns.add(self._token_ids[start:end], logprobs, tops)
        self._num_tokens = end
        # what is left of a character at the end of the prompt is text, too
        num_shown = len(self._text) if end == len(self._token_ids) else self._columns.offset
        text, self._num_shown = self._text[self._num_shown : num_shown], num_shown
        return text, columns
