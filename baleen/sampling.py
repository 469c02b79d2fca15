"""What a request may ask of the sampler, validated once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from baleen.budget import Budget
from baleen.constraint import Constraint
from baleen.errors import InvalidRequest

MAX_LOGPROBS = 20
MAX_COMPLETIONS = 128
MAX_STOP_STRINGS = 16
MAX_SEED = 2**63 - 1

_NO_BIAS: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Parameters of one submission.

    temperature 0 is greedy. top_k 0 and top_p 1 and min_p 0 switch those filters off. Filters apply after the
    temperature, in the order top_k, top_p, min_p. repetition_penalty divides (or multiplies) the logits of tokens
    seen in prompt or output; presence and frequency penalties count output tokens only. logprobs None reports none,
    0 reports the sampled token, N its N best rivals too; they are taken from the model's own distribution, before
    penalties, bias, temperature and filters. prompt_logprobs is the same for the tokens of the prompt, all but the
    first; with it max_tokens may be 0, and no cached prefix is read. Stop strings are matched by whoever turns tokens
    into text.

    With a constraint, tokens that end the completion come where the constraint lets it end, and nowhere else; where
    nothing else may follow they come also before min_tokens and with ignore_eos. Penalties and bias weigh what the
    constraint allows, and never lift what it forbids. A budget has its text come whatever else is asked for, once the
    constraint allows it.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)
    stop_token_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    seed: int | None = None
    constraint: Constraint | None = None
    budget: Budget | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        """Raise InvalidRequest with the field, the value and the limit."""
        self._integer("max_tokens", 1 if self.prompt_logprobs is None else 0, 2**31 - 1)
        self._integer("min_tokens", 0, self.max_tokens)
        self._integer("top_k", 0, 2**31 - 1)
        self._integer("n", 1, MAX_COMPLETIONS)
        self._number("temperature", 0.0, 100.0)
        self._number("top_p", 0.0, 1.0, open_low=True)
        self._number("min_p", 0.0, 1.0)
        self._number("repetition_penalty", 0.0, 100.0, open_low=True)
        self._number("presence_penalty", -2.0, 2.0)
        self._number("frequency_penalty", -2.0, 2.0)
        if self.logprobs is not None:
            self._integer("logprobs", 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            self._integer("prompt_logprobs", 0, MAX_LOGPROBS)
        if self.seed is not None:
            self._integer("seed", 0, MAX_SEED)
        for token, bias in self.logit_bias.items():
            if not -100.0 <= bias <= 100.0:
                raise InvalidRequest(f"logit_bias[{token}] is {bias}, must be between -100 and 100", field="logit_bias")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(
                f"stop has {len(self.stop)} strings, at most {MAX_STOP_STRINGS} are allowed", field="stop"
            )
        if any(not text for text in self.stop):
            raise InvalidRequest("stop contains an empty string", field="stop")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    def _integer(self, name: str, low: int, high: int) -> None:
        value: Any = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise InvalidRequest(f"{name} is {value!r}, must be an integer from {low} to {high}", field=name)

    def _number(self, name: str, low: float, high: float, *, open_low: bool = False) -> None:
        value: Any = getattr(self, name)
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value > high or value < low or (open_low and value == low):
            above = "above" if open_low else "at least"
            raise InvalidRequest(f"{name} is {value!r}, must be {above} {low} and at most {high}", field=name)
