"""Configuration of the gateway's accounts: whether keys are checked, where accounts are kept, and what tokens cost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from baleen.errors import ConfigError

KeyMode = Literal["auto", "required", "open"]
Currency = Literal["USD", "CNY", "EUR"]

_PRICE = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysConfig:
    """Keys and accounts. mode: `required` checks a key with every call, `open` lets everybody in who reaches it;
    `auto` is open where the gateway listens on loopback and required elsewhere, where it does not start without a key.

    database: file of the accounts, on a local disk, shared by all gateways of this machine; empty: one of this user and
    of the cluster's name.
    """

    mode: KeyMode = "auto"
    database: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceConfig:
    """What a million tokens of a model cost, as decimals in quotes: of the prompt, found in the cache (input_hit) or
    not (input_miss), and of the answer. model: a name that clients ask for; one without a price costs nothing.
    """

    model: str
    input_hit: str = "0"
    input_miss: str = "0"
    output: str = "0"
    currency: Currency = "USD"

    def __post_init__(self) -> None:
        """Raise ConfigError on a price that is no decimal, or that has more than six places on either side."""
        if not _MODEL.fullmatch(self.model):
            raise ConfigError(
                f"the model of a price is {self.model!r}, must be a name of letters, digits and ._:/-, at most 128"
            )
        for name in ("input_hit", "input_miss", "output"):
            value = getattr(self, name)
            if not _PRICE.fullmatch(value):
                raise ConfigError(
                    f'{name} of the price of {self.model} is {value!r}, must be a decimal like "0.28", at most six '
                    f"digits before the point and six after it"
                )


def require_one_currency(prices: tuple[PriceConfig, ...]) -> None:
    """Raise ConfigError if prices name a model twice, or several currencies: balances have one."""
    names = [price.model.lower() for price in prices]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ConfigError(f"gateway.prices names the model {repeated!r} twice, must name each once")
    currencies = sorted({price.currency for price in prices})
    if len(currencies) > 1:
        raise ConfigError(f"gateway.prices has the currencies {', '.join(currencies)}, must have one")
