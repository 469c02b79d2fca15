"""How `baleen generate` shows its completions: streamed text, headed blocks, or JSON; and the summary on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from cluster.completion import Completion
from cluster.generation import Timing
from workers.engine.messages import Ready


class Printer(Protocol):
    """Gets every completion's text as it comes, and its end."""

    def text(self, completion: Completion, piece: str) -> None:
        """New text of one completion."""
        ...

    def end(self, completion: Completion) -> None:
        """One completion is complete."""
        ...


class StreamPrinter:
    """For a single completion: its text as it comes."""

    def text(self, completion: Completion, piece: str) -> None:
        """See Printer."""
        _write(piece)

    def end(self, completion: Completion) -> None:
        """See Printer."""
        _write("\n")


class InOrderPrinter:
    """For several completions: each once it and all before it are complete, in the order of prompts and indices."""

    def __init__(self, completions: Sequence[Completion], *, as_json: bool) -> None:
        self._waiting = list(completions)
        self._as_json = as_json

    def text(self, completion: Completion, piece: str) -> None:
        """See Printer; text is shown at the end."""

    def end(self, completion: Completion) -> None:
        """See Printer."""
        while self._waiting and self._waiting[0].finish is not None:
            done = self._waiting.pop(0)
            _write(json.dumps(completion_json(done)) + "\n" if self._as_json else _block(done))


def completion_json(completion: Completion) -> dict[str, Any]:
    """One completion as the JSON object that `--json` prints."""
    with_logprobs = any(token.logprob is not None for token in completion.tokens)
    return {
        "token_ids": completion.token_ids,
        "text": completion.text,
        "finish_reason": completion.finish,
        "prompt_tokens": completion.num_prompt_tokens,
        "cached_tokens": completion.num_cached_tokens,
        "logprobs": [
            {
                "token_id": token.token_id,
                "logprob": token.logprob,
                "top": [[rival, logprob] for rival, logprob in token.top_logprobs],
            }
            for token in completion.tokens
        ]
        if with_logprobs
        else None,
    }


def summary(completions: Sequence[Completion], timing: Timing) -> str:
    """Tokens and speed of one batch, one line."""
    prompts = [completion for completion in completions if completion.index == 0]
    new = sum(len(completion.tokens) for completion in completions)
    what = "" if len(completions) == 1 else f"{len(prompts)} prompts, {len(completions)} completions: "
    ends = ", ".join(sorted({str(completion.finish) for completion in completions}))
    return (
        f"{what}{sum(completion.num_prompt_tokens for completion in prompts)} prompt tokens "
        f"({sum(completion.num_cached_tokens for completion in prompts)} cached), {new} new tokens ({ends}), "
        f"first token after {timing.first_token_s:.3f} s, {new / max(timing.total_s, 1e-9):.1f} tokens/s"
    )


def startup_summary(ready: Ready, total_s: float) -> str:
    """Where the time before the first request went, one line; parts are those of rank 0."""
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in ready.startup)
    return f"start-up {total_s:.2f} s: {parts}"


def tell(line: str) -> None:
    """One line for the person at the terminal, on stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _block(completion: Completion) -> str:
    text = completion.text
    body = " ".join(map(str, completion.token_ids)) if text is None else text
    return f"=== prompt {completion.prompt}, completion {completion.index} ({completion.finish}) ===\n{body}\n"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
