"""How many tokens a completion may take until a text comes in it, as it travels with a request."""

from __future__ import annotations

from dataclasses import dataclass

from baleen.errors import InvalidRequest

MAX_END = 64
"""Characters of the text."""

MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Tokens of output after which `end` comes, unless it came before: so is thinking ended.

    A character that is being written then is finished first, with 3 tokens at most where there is no constraint. What
    follows `end` is not bounded.
    """

    tokens: int
    end: str

    def __post_init__(self) -> None:
        """Raise InvalidRequest with the field, the value and the limit."""
        if not isinstance(self.tokens, int) or isinstance(self.tokens, bool) or not 0 <= self.tokens <= MAX_TOKENS:
            problem = f"budget.tokens is {self.tokens!r}, must be an integer from 0 to {MAX_TOKENS}"
            raise InvalidRequest(problem, field="budget.tokens")
        if not 0 < len(self.end) <= MAX_END:
            problem = f"budget.end has {len(self.end)} characters, must have from 1 to {MAX_END}"
            raise InvalidRequest(problem, field="budget.end")
        if any("\ud800" <= char <= "\udfff" for char in self.end):
            raise InvalidRequest("budget.end holds half of a surrogate pair", field="budget.end")
