"""How many tokens a completion may take until a text comes in it, as it travels with a request."""

from __future__ import annotations

from dataclasses import dataclass

from baleen.errors import InvalidRequest

MAX_END = 64
"""Characters of a text."""

MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Tokens of output after which `end` comes, unless it or `unless` came before: so is thinking ended.

    unless: what ends the thinking too, such as a call that the model makes amidst it; empty: nothing does. A character
    that is being written then is finished first, with 3 tokens at most where there is no constraint. What follows is
    not bounded.
    """

    tokens: int
    end: str
    unless: str = ""

    def __post_init__(self) -> None:
        """Raise InvalidRequest with the field, the value and the limit."""
        if not isinstance(self.tokens, int) or isinstance(self.tokens, bool) or not 0 <= self.tokens <= MAX_TOKENS:
            problem = f"budget.tokens is {self.tokens!r}, must be an integer from 0 to {MAX_TOKENS}"
            raise InvalidRequest(problem, field="budget.tokens")
        for name, text, least in (("end", self.end, 1), ("unless", self.unless, 0)):
            if not least <= len(text) <= MAX_END:
                problem = f"budget.{name} has {len(text)} characters, must have from {least} to {MAX_END}"
                raise InvalidRequest(problem, field=f"budget.{name}")
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise InvalidRequest(f"budget.{name} holds half of a surrogate pair", field=f"budget.{name}")
