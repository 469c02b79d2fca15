"""What a client wants, in no dialect, and what comes of it, piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from baleen.sampling import SamplingParams
from baleen.text.output_events import Event
from baleen.v1 import common_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request for answers to one prompt.

    model: as asked for. thinking: the answer begins inside its reasoning; None: it is plain text, and not taken apart.
    tools: calls are looked for; one_call: after the first one the rest is dropped. opening: text that the answer is
    made to begin with; it stands at the end of the prompt already.
    """

    model: str
    prompt: Sequence[int]
    sampling: SamplingParams
    thinking: bool | None
    tools: bool = False
    one_call: bool = False
    opening: str = ""
    cache_salt: str = ""
    priority: int = 0


class TokenUsage(NamedTuple):
    """Tokens of one request, all its answers together. cached: of the prompt. reasoning: of the answers."""

    prompt: int
    cached: int
    completion: int
    reasoning: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """News of one answer. finish: stop, length, tool_calls or insufficient_system_resource, in its last piece only.

    usage: of all answers so far. stopped_by: the stop string that ended the answer, if one did. prompt: news of the
    prompt, of all the answers to it; then nothing else.
    """

    index: int
    events: Sequence[Event]
    token_ids: Sequence[int]
    logprobs: Sequence[common_pb2.PositionLogprobs]
    finish: str | None
    usage: TokenUsage
    stopped_by: str | None = None
    prompt: common_pb2.PromptLogprobs | None = None
