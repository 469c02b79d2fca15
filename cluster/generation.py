"""A set of prompts through a group of ranks: submit all at once, follow every completion to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from baleen import errors
from baleen.clock import Clock
from baleen.errors import BaleenError, InvalidRequest
from baleen.ids import RequestId, new_request_id
from baleen.sampling import SamplingParams
from baleen.text.completion import CompletionText
from baleen.text.stop_strings import StopStrings
from baleen.text.tokenizer import Tokenizer
from cluster.completion import Completion
from cluster.local_group import SpawnedGroup
from workers.engine.batch import FinishReason, RequestOutput
from workers.engine.messages import Refused, StepReport, Submit

_LONG_S = 3600.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds from the submission: to the first token of any completion, and to the end of the last one."""

    first_token_s: float
    total_s: float


class Generation:
    """One batch of prompts and their completions, in the order of prompts, then of indices."""

    def __init__(
        self,
        group: SpawnedGroup,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams,
        *,
        tokenizer: Tokenizer | None,
        clock: Clock,
        priority: int = 0,
        deadline_s: float | None = None,
    ) -> None:
        """prompts: token ids. Stop strings need a tokenizer."""
        assert tokenizer is not None or not sampling.stop
        self._group = group
        self._clock = clock
        self._prompts = prompts
        self._sampling = sampling
        self._priority = priority
        self._deadline_s = deadline_s
        self._numbers: dict[RequestId, int] = {}
        stops = StopStrings(sampling.stop) if sampling.stop else None

        def renderer() -> CompletionText | None:
            return CompletionText(tokenizer, stops, min_tokens=sampling.min_tokens) if tokenizer else None

        self._by_place = {
            (number, index): Completion(prompt=number, index=index, num_prompt_tokens=len(prompt), renderer=renderer())
            for number, prompt in enumerate(prompts)
            for index in range(sampling.n)
        }

    @property
    def completions(self) -> list[Completion]:
        """All completions, in order."""
        return list(self._by_place.values())

    def run(self, on_text: Callable[[Completion, str], None], on_end: Callable[[Completion], None]) -> Timing:
        """Generate. on_text: new text of a completion; on_end: it is complete. Both in the order of events.

        Raises InvalidRequest and CapacityError for a prompt that a rank refuses, EpochEnded if a rank is lost,
        BaleenError if a completion fails.
        """
        begin = self._clock.now()
        self._submit(begin)
        first_token: float | None = None
        open_ends = len(self._by_place)
        while open_ends:
            for completion, output in self._news():
                if completion.finish is not None:
                    continue
                if output.tokens and first_token is None:
                    first_token = self._clock.now()
                if piece := completion.take(output):
                    on_text(completion, piece)
                if completion.finish is not None:
                    self._end(completion, output)
                    on_end(completion)
                    open_ends -= 1
        end = self._clock.now()
        return Timing((end if first_token is None else first_token) - begin, end - begin)

    def _submit(self, now: float) -> None:
        deadline = None if self._deadline_s is None else now + self._deadline_s
        for number, prompt in enumerate(self._prompts):
            request_id = new_request_id()
            self._numbers[request_id] = number
            self._group.submit(
                Submit(
                    request_id=request_id,
                    token_ids=tuple(prompt),
                    sampling=self._sampling,
                    priority=self._priority,
                    deadline=deadline,
                )
            )

    def _news(self) -> Iterable[tuple[Completion, RequestOutput]]:
        found = self._group.next_event(_LONG_S)
        event = found[1] if found is not None else None
        # what was left over from an earlier batch is not known here
        if isinstance(event, Refused) and event.request_id in self._numbers:
            raise self._refusal(event, self._numbers[event.request_id])
        if isinstance(event, StepReport):
            for output in event.outputs:
                if output.request_id in self._numbers:
                    yield self._by_place[self._numbers[output.request_id], output.index], output

    def _end(self, completion: Completion, output: RequestOutput) -> None:
        if completion.stopped_by_text:
            self._group.abort(output.request_id, output.index)
        elif output.finish in (FinishReason.FAILED, FinishReason.DEAD_END):
            raise BaleenError(f"completion {completion.index} of prompt {completion.prompt} failed: {output.detail}")

    def _refusal(self, event: Refused, number: int) -> BaleenError:
        message = event.message if len(self._prompts) == 1 else f"prompt {number}: {event.message}"
        if event.error == InvalidRequest.__name__:
            return InvalidRequest(message, field=event.field or "message")
        kind: type[BaleenError] = getattr(errors, event.error, BaleenError)
        return kind(message)
