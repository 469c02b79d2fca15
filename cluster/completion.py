"""One completion as it grows: its tokens, its text, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from baleen.text.completion import CompletionText, StopHit
from workers.engine.batch import FinishReason, RequestOutput, SampledToken


@dataclass(slots=True, eq=False, kw_only=True)
class Completion:
    """Completion `index` of prompt number `prompt`. Without a tokenizer it has no text.

    tokens: all that were generated, the end-of-sequence token included. finish: "stop", "length", "deadline" and so
    on; None while it grows.
    """

    prompt: int
    index: int
    num_prompt_tokens: int
    renderer: CompletionText | None
    num_cached_tokens: int = 0
    tokens: list[SampledToken] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    finish: str | None = None
    detail: str = ""
    stopped_by_text: bool = False

    @property
    def text(self) -> str | None:
        """All text so far, without the end-of-sequence token or the stop string; None without a tokenizer."""
        return None if self.renderer is None else "".join(self.pieces)

    @property
    def token_ids(self) -> list[int]:
        """Ids of all tokens so far."""
        return [token.token_id for token in self.tokens]

    def take(self, output: RequestOutput) -> str:
        """Take in news from the rank; returns the text that is new, without a tokenizer the ids.

        Whatever comes after the end is ignored: a rank learns of a stop string a little later.
        """
        if self.finish is not None:
            return ""
        assert output.position == len(self.tokens), f"tokens {len(self.tokens)} to {output.position} are missing"
        self.num_cached_tokens = output.num_cached_tokens
        self.tokens.extend(output.tokens)
        piece = self._render(output)
        self.pieces.append(piece)
        if self.finish is None and output.finish is not None:
            self.finish, self.detail = output.finish.value, output.detail
        return piece

    def _render(self, output: RequestOutput) -> str:
        ids = [token.token_id for token in output.tokens]
        if self.renderer is None:
            return "".join(f"{token} " for token in ids)
        # the token that stops a completion is no part of its text
        delta = self.renderer.feed(ids[:-1] if output.finish is FinishReason.STOP else ids)
        piece, hit = delta.text, delta.hit
        if hit is None and output.finish is not None:
            rest = self.renderer.finish()
            piece, hit = piece + rest.text, rest.hit
        if hit is not None:
            self._stop(hit, still_running=output.finish is None)
        return piece

    def _stop(self, hit: StopHit, *, still_running: bool) -> None:
        del self.tokens[hit.num_tokens :]
        self.finish = FinishReason.STOP.value
        self.stopped_by_text = still_running
