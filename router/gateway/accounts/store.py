"""The interface of account stores; `sqlite_store` has one. A store is used by one thread at a time.

Everything that one method does happens together or not at all, whatever other processes do meanwhile.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from router.gateway.accounts.records import Allowance, DayUsage, Entry, Key, Opening


class AccountStore(Protocol):
    """Keys, limits and the ledger. now_s: of a clock that only goes forward; wall_s: seconds since 1970."""

    def transaction(self, *, durable: bool = True) -> AbstractContextManager[None]:
        """All that is done inside happens together; inside another one, as a part of that.

        durable: on the disk before it returns; otherwise a loss of power may take it back, the end of a process not.
        Raises NotReady if the store cannot be used now; then nothing of it has happened.
        """

    def add_key(self, key: Key, *, balance: int | None) -> None:
        """Keep a new key, with a first credit in picos where it has a balance."""

    def all_keys(self) -> list[Key]:
        """All keys, revoked ones too, oldest first."""

    def keys_version(self) -> int:
        """A number that changes when a key does."""

    def revoke(self, key_id: str, *, wall_s: float) -> Key:
        """End a key for good. Raises UnknownName if there is none; a revoked one stays as it is."""

    def credit(self, key_id: str, amount: int, *, note: str, wall_s: float) -> int:
        """Add picos to a balance; returns the new one. Raises UnknownName, or ConfigError if the key has no balance."""

    def balance(self, key_id: str) -> int | None:
        """Picos that are left, reservations included; None if the key has no balance or there is none."""

    def take_request(self, key: Key, *, now_s: float) -> Allowance | None:
        """Count a call against the limit of requests. Raises Refused when that is used up; None: no limit."""

    def open(self, opening: Opening, *, now_s: float, wall_s: float) -> Allowance | None:
        """Reserve a place, tokens and money for a request. Raises Refused; returns what is left of the tokens."""

    def settle(self, entry: Entry, *, now_s: float, wall_s: float) -> bool:
        """Write the entry of an open request, take its cost and give back what it did not use.

        False if the request is not open: a second entry is never written.
        """

    def recover(self, *, now_s: float, wall_s: float) -> int:
        """Write entries without cost for requests whose gateway died; returns how many."""

    def usage(self, key_id: str | None, *, first_day: str, last_day: str) -> list[DayUsage]:
        """Sums by day, key and model, in this order. key_id None: of all keys."""

    def num_open(self, key_id: str) -> int:
        """Requests of a key that have not ended, in all gateways."""

    def close(self) -> None:
        """Release what is held."""
