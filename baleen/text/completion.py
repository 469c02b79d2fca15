"""The text of one completion: tokens in, text out, ended by the first stop string."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from baleen.text.detokenizer import Detokenizer
from baleen.text.stop_strings import StopMatcher, StopStrings
from baleen.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class StopHit:
    """A stop string that ended a completion. num_tokens: tokens from the first to the one that completed the match."""

    stop: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of a completion. `hit` is set when this delta is its last because of a stop string."""

    text: str
    hit: StopHit | None = None


class CompletionText:
    """Turns one completion's tokens into text.

    The caller feeds every token but the one that ended the completion (EOS or a stop token), in order, then calls
    `finish`. A character belongs to the token that completes it. A stop string counts only if all of its characters
    belong to tokens after the first `min_tokens`; earlier text goes out as if there were no stop strings.
    """

    def __init__(self, tokenizer: Tokenizer, stops: StopStrings | None = None, *, min_tokens: int = 0) -> None:
        assert min_tokens >= 0
        self._detokenizer = Detokenizer(tokenizer)
        self._matcher = StopMatcher(stops) if stops is not None else None
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._ended = False

    def feed(self, token_ids: Iterable[int]) -> TextDelta:
        """Text that may go out after these tokens. After a hit, tokens that were still on their way are ignored."""
        pieces: list[str] = []
        for token_id in token_ids:
            if self._ended:
                break
            self._num_tokens += 1
            piece, hit = self._match(self._detokenizer.feed(token_id))
            pieces.append(piece)
            if hit is not None:
                return TextDelta("".join(pieces), hit)
        return TextDelta("".join(pieces))

    def finish(self) -> TextDelta:
        """What was held back. An incomplete last character becomes U+FFFD, which may complete a stop string."""
        if self._ended:
            return TextDelta("")
        piece, hit = self._match(self._detokenizer.finish())
        self._ended = True
        if hit is None and self._matcher is not None:
            piece += self._matcher.finish()
        return TextDelta(piece, hit)

    def _match(self, text: str) -> tuple[str, StopHit | None]:
        if self._matcher is None or self._num_tokens <= self._min_tokens:
            return text, None
        piece, stop = self._matcher.feed(text)
        if stop is None:
            return piece, None
        self._ended = True
        return piece, StopHit(stop, self._num_tokens)
