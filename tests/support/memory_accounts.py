"""An AccountStore in plain dictionaries and fractions, written from the interface alone, to compare others with."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction

from baleen.errors import ConfigError, UnknownName
from router.gateway.accounts.money import Usage
from router.gateway.accounts.records import Allowance, DayUsage, Refused


class MemoryStore:
    """For one process; a death of a gateway is told by `kill`."""

    def __init__(self):
        self._state = {"keys": {}, "balances": {}, "open": {}, "ledger": [], "buckets": {}}
        self._version = 0
        self._dead = False

    @contextmanager
    def transaction(self, *, durable=True):
        before = copy.deepcopy(self._state)
        try:
            yield
        except BaseException:
            self._state = before
            raise

    def add_key(self, key, *, balance):
        self._state["keys"][key.key_id] = key
        if balance is not None:
            self._state["balances"][key.key_id] = balance
        self._version += 1

    def all_keys(self):
        return sorted(self._state["keys"].values(), key=lambda key: (key.created_at, key.key_id))

    def keys_version(self):
        return self._version

    def revoke(self, key_id, *, wall_s):
        key = self._known(key_id)
        if key.revoked_at is None:
            self._state["keys"][key_id] = key = replace(key, revoked_at=wall_s)
            self._version += 1
        return key

    def credit(self, key_id, amount, *, note, wall_s):
        if not self._known(key_id).has_balance:
            raise ConfigError("no balance")
        if self._state["balances"][key_id] + amount > 10**18:
            raise ConfigError("too much")
        self._state["balances"][key_id] += amount
        return self._state["balances"][key_id]

    def balance(self, key_id):
        return self._state["balances"].get(key_id)

    def take_request(self, key, *, now_s):
        if key.requests_per_minute is None:
            return None
        return self._take(key.key_id, "requests", 1, key.requests_per_minute, now_s)

    def open(self, opening, *, now_s, wall_s):
        state, left, tokens = self._state, None, 0
        if opening.key_id:
            key = state["keys"].get(opening.key_id)
            if key is None or key.revoked_at is not None:
                raise Refused("key", "")
            if key.expires_at is not None and wall_s >= key.expires_at:
                raise Refused("expired", "")
            mine = [one for one, _ in state["open"].values() if one.key_id == key.key_id]
            if key.concurrency is not None and len(mine) >= key.concurrency:
                raise Refused("concurrency", "", retry_after_s=1.0)
            if key.has_balance:
                balance = state["balances"][key.key_id]
                if balance <= 0 or balance - sum(one.most_cost for one in mine) < opening.most_cost:
                    raise Refused("balance", "")
            if key.tokens_per_minute is not None:
                tokens = min(opening.most_tokens, key.tokens_per_minute)
                left = self._take(key.key_id, "tokens", tokens, key.tokens_per_minute, now_s)
        assert opening.request_id not in state["open"]
        state["open"][opening.request_id] = (opening, tokens)
        return left

    def settle(self, entry, *, now_s, wall_s):
        state = self._state
        if entry.request_id not in state["open"]:
            return False
        opening, reserved = state["open"].pop(entry.request_id)
        day = datetime.fromtimestamp(wall_s, UTC).date().isoformat()
        state["ledger"].append((day, opening, entry))
        if opening.key_id in state["balances"]:
            state["balances"][opening.key_id] -= entry.cost
        key = state["keys"].get(opening.key_id)
        if key is not None and key.tokens_per_minute is not None:
            usage = entry.usage
            used = usage.hit_tokens + usage.miss_tokens + usage.completion_tokens
            limit = key.tokens_per_minute
            level = min(limit, self._level(key.key_id, "tokens", limit, now_s) + reserved - used)
            state["buckets"][key.key_id, "tokens"] = (level, now_s)
        return True

    def recover(self, *, now_s, wall_s):
        return 0

    def usage(self, key_id, *, first_day, last_day):
        sums = {}
        for day, opening, entry in self._state["ledger"]:
            if first_day <= day <= last_day and key_id in (None, opening.key_id):
                sums.setdefault((day, opening.key_id, opening.model), []).append(entry)
        return [
            DayUsage(
                day=day,
                key_id=key,
                model=model,
                num_requests=len(entries),
                usage=Usage(
                    sum(one.usage.hit_tokens for one in entries),
                    sum(one.usage.miss_tokens for one in entries),
                    sum(one.usage.completion_tokens for one in entries),
                    sum(one.usage.reasoning_tokens for one in entries),
                ),
                cost=sum(one.cost for one in entries),
            )
            for (day, key, model), entries in sorted(sums.items())
        ]

    def num_open(self, key_id):
        return sum(opening.key_id == key_id for opening, _ in self._state["open"].values())

    def close(self):
        pass

    def _known(self, key_id):
        if key_id not in self._state["keys"]:
            raise UnknownName(key_id)
        return self._state["keys"][key_id]

    def _level(self, key_id, kind, limit, now_s):
        level, at_s = self._state["buckets"].get((key_id, kind), (Fraction(limit), now_s))
        return min(Fraction(limit), level + max(0, Fraction(now_s) - Fraction(at_s)) * limit / 60)

    def _take(self, key_id, kind, amount, limit, now_s):
        level = self._level(key_id, kind, limit, now_s)
        if level < amount:
            raise Refused(kind, "", retry_after_s=float((amount - level) * 60 / limit))
        level -= amount
        self._state["buckets"][key_id, kind] = (level, now_s)
        return Allowance(limit, max(0, int(level)), float((limit - level) * 60 / limit))
