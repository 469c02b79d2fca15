"""Money: whole numbers of picos, 10^-12 of a unit of currency, in which every price of a token is exact."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from baleen.accounts_config import PriceConfig, require_one_currency
from baleen.errors import ConfigError

PICO = 10**12
MOST_UNITS = 1_000_000
"""The largest amount of one credit, in units of currency: sums of a few of them fit a 64-bit integer."""

_AMOUNT = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,12}))?")


def parse_amount(text: str, *, name: str) -> int:
    """The picos of a decimal. Raises ConfigError if it is none, is not above 0, or is above MOST_UNITS."""
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise ConfigError(f"{name} is {text!r}, must be a decimal like 12.50, at most 12 places after the point")
    picos = int(match[1]) * PICO + int((match[2] or "").ljust(12, "0"))
    if not 0 < picos <= MOST_UNITS * PICO:
        raise ConfigError(f"{name} is {text}, must be above 0, up to {MOST_UNITS}")
    return picos


def shown(picos: int) -> str:
    """The exact decimal, with two places or as many as it needs."""
    whole, rest = divmod(abs(picos), PICO)
    places = f"{rest:012d}".rstrip("0").ljust(2, "0")
    return f"{'-' if picos < 0 else ''}{whole}.{places}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request. prompt: hit_tokens were found in the cache, miss_tokens were not.

    reasoning_tokens are among completion_tokens.
    """

    hit_tokens: int = 0
    miss_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """Picos for one token of each kind."""

    hit: int = 0
    miss: int = 0
    output: int = 0

    def cost(self, usage: Usage) -> int:
        """Picos for one request."""
        return usage.hit_tokens * self.hit + usage.miss_tokens * self.miss + usage.completion_tokens * self.output

    def most(self, prompt_tokens: int, output_tokens: int) -> int:
        """Picos that a request can cost at most."""
        return prompt_tokens * max(self.hit, self.miss) + output_tokens * self.output


class PriceList:
    """Prices by the names of models, in whatever case."""

    def __init__(self, prices: Iterable[PriceConfig] = ()) -> None:
        """Raises ConfigError if a model stands twice, or the currencies differ."""
        prices = tuple(prices)
        require_one_currency(prices)
        self._configured = prices
        self.currency = prices[0].currency if prices else "USD"
        self._prices = {
            price.model.lower(): Price(
                _per_token(price.input_hit), _per_token(price.input_miss), _per_token(price.output)
            )
            for price in prices
        }

    def shown(self) -> dict[str, Any]:
        """All prices for a million tokens, for clients."""
        prices = [
            {
                "model": price.model,
                "input_hit": price.input_hit,
                "input_miss": price.input_miss,
                "output": price.output,
            }
            for price in self._configured
        ]
        return {"object": "list", "currency": self.currency, "data": prices}

    def of(self, *names: str) -> Price:
        """The price of the first name that has one; 0 if none has."""
        found = (self._prices[name.lower()] for name in names if name.lower() in self._prices)
        return next(found, Price())


def _per_token(per_million: str) -> int:
    # six places of a price for a million tokens are whole picos for one
    whole, _, places = per_million.partition(".")
    return int(whole) * 10**6 + int(places.ljust(6, "0"))
