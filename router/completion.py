"""One completion of a request as the client sees it: tokens in output order without repeats, text, and one end."""

from __future__ import annotations

from collections.abc import Sequence

from baleen.errors import BaleenError, InvalidRequest
from baleen.reports import FinishReason, PromptLogprobs, RequestOutput, SampledToken
from baleen.sampling import SamplingParams
from baleen.text.completion import CompletionText, StopHit
from baleen.text.stop_strings import StopStrings
from baleen.text.tokenizer import Tokenizer
from router.messages import Delta


class OutputGap(BaleenError):
    """A rank sent tokens that do not join those that came before."""


class ClientCompletion:
    """Takes what ranks send for completion `index`, whichever rank it runs on at the time.

    token_ids: all that the client has, a stop token included. A rank may repeat tokens; it may not leave any out.
    stopped_by_text: a stop string ended it, and the rank does not know of it.
    """

    def __init__(self, index: int, text: CompletionText | None) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.finish: FinishReason | None = None
        self.stopped_by_text = False
        self._text = text

    def resume(self, token_ids: Sequence[int]) -> None:
        """The client has these already, and their text. Raises InvalidRequest if a stop string ended it with them."""
        hit = self._text.feed(token_ids).hit if self._text is not None else None
        if hit is not None:
            raise InvalidRequest(
                f"the completion has ended: its token {hit.num_tokens} completes the stop string {hit.stop!r}",
                field="num_delivered",
            )
        self.token_ids.extend(token_ids)

    def take(self, output: RequestOutput) -> Delta | None:
        """The news in `output` for the client, or None if there is none. What comes after the end is ignored.

        Raises OutputGap if tokens are missing before it.
        """
        if self.finish is not None:
            return None
        known = len(self.token_ids)
        skip = known - output.position
        if skip < 0:
            raise OutputGap(f"completion {self.index} has {known} tokens, the next ones start at {output.position}")
        tokens, finish = output.tokens[skip:] if skip else output.tokens, output.finish
        if not tokens and finish is None:
            return None
        text, hit = self._render(tokens, finish)
        if hit is not None:
            # the rank learns of it later, unless it ended the completion itself in this very step
            self.stopped_by_text = finish is None
            finish = FinishReason.STOP
            tokens = tokens[: hit.num_tokens - known]
        self.token_ids.extend([token.token_id for token in tokens])
        self.finish = finish
        return Delta(
            index=self.index,
            tokens=tokens,
            text=text,
            finish=finish,
            detail=output.detail if hit is None else "",
            num_output_tokens=len(self.token_ids),
        )

    def _render(
        self, tokens: tuple[SampledToken, ...], finish: FinishReason | None
    ) -> tuple[str | None, StopHit | None]:
        if self._text is None:
            return None, None
        ids = [token.token_id for token in tokens]
        # the token that stops a completion is no part of its text
        delta = self._text.feed(ids[:-1] if finish is FinishReason.STOP else ids)
        piece, hit = delta.text, delta.hit
        if hit is None and finish is not None:
            rest = self._text.finish()
            piece, hit = piece + rest.text, rest.hit
        return piece, hit


class ClientPrompt:
    """The log-probabilities of a request's prompt as the client sees them: each place once, in order.

    num_top: the most likely tokens at each place; None: the client asked for none. next: place of the first token whose
    log-probabilities it lacks.
    """

    def __init__(self, num_tokens: int, num_top: int | None, *, is_delivered: bool = False) -> None:
        """is_delivered: the client has them all already."""
        self.num_top = num_top
        self.next = num_tokens if is_delivered else 1
        self._num_tokens = num_tokens

    @property
    def is_wanted(self) -> bool:
        """Whether any are still to come."""
        return self.num_top is not None and self.next < self._num_tokens

    @property
    def has_begun(self) -> bool:
        """Whether the client has any."""
        return self.next > 1

    def take(self, logprobs: PromptLogprobs) -> PromptLogprobs | None:
        """The news in `logprobs` for the client, or None if there is none.

        Raises OutputGap if some are missing before it.
        """
        if logprobs.position > self.next:
            raise OutputGap(
                f"log-probabilities of the prompt from {self.next} on are missing, the next ones start at "
                f"{logprobs.position}"
            )
        if logprobs.end <= self.next:
            return None
        news = logprobs.part(self.next, logprobs.end)
        self.next = logprobs.end
        return news

    def require_whole(self) -> None:
        """Raise OutputGap if any are missing, now that a completion begins."""
        if self.is_wanted:
            raise OutputGap(f"log-probabilities of the prompt end at {self.next} of {self._num_tokens} tokens")


def new_completions(
    sampling: SamplingParams, tokenizer: Tokenizer | None, *, wants_text: bool
) -> list[ClientCompletion]:
    """The `sampling.n` completions of one request. Stop strings need a tokenizer, also where no text is wanted."""
    assert tokenizer is not None or not (wants_text or sampling.stop)
    stops = StopStrings(sampling.stop) if sampling.stop else None

    def renderer() -> CompletionText | None:
        if tokenizer is None or not (wants_text or stops):
            return None
        return CompletionText(tokenizer, stops, min_tokens=sampling.min_tokens)

    return [ClientCompletion(index, renderer()) for index in range(sampling.n)]
