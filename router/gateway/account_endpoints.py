"""GET /v1/usage and GET /user/balance: what the caller's key used, day by day, and what it has left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, NoReturn

from baleen.errors import InvalidRequest
from router.gateway.accounts.accounts import Accounts
from router.gateway.accounts.money import shown
from router.gateway.accounts.records import DayUsage
from router.gateway.auth import Caller

_DAY = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
DEFAULT_DAYS = 30
MOST_DAYS = 366


async def usage(accounts: Accounts, caller: Caller, query: Mapping[str, str], *, wall_s: float) -> dict[str, Any]:
    """Sums by day and model, the caller's own only. query: start_date and end_date, YYYY-MM-DD in UTC, both included.

    Raises InvalidRequest on a date that is none, or a span out of range.
    """
    last = _day(query, "end_date") or datetime.fromtimestamp(wall_s, UTC).date()
    first = _day(query, "start_date") or max(date.min + timedelta(DEFAULT_DAYS), last) - timedelta(DEFAULT_DAYS - 1)
    if not 0 <= (last - first).days < MOST_DAYS:
        raise InvalidRequest(
            f"start_date is {first} and end_date is {last}, must be from 1 to {MOST_DAYS} days, the first one first",
            field="start_date",
        )
    days = await accounts.usage(caller.key, first_day=first.isoformat(), last_day=last.isoformat())
    return {
        "object": "list",
        "start_date": first.isoformat(),
        "end_date": last.isoformat(),
        "currency": accounts.prices.currency,
        "data": [_shown(day) for day in days],
    }


async def balance(accounts: Accounts, caller: Caller) -> dict[str, Any]:
    """As DeepSeek has it. A key without a balance is always available, and has no amounts."""
    left = await accounts.balance(caller.key) if caller.key is not None else None
    if left is None:
        return {"is_available": True, "balance_infos": []}
    amount = shown(left)
    infos = {
        "currency": accounts.prices.currency,
        "total_balance": amount,
        "granted_balance": "0.00",
        "topped_up_balance": amount,
    }
    return {"is_available": left > 0, "balance_infos": [infos]}


def _day(query: Mapping[str, str], name: str) -> date | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        # of all forms of a date only this one, which `fromisoformat` alone does not demand
        return date(*map(int, match.groups())) if (match := _DAY.fullmatch(text)) else _not_a_day(name, text)
    except ValueError:
        _not_a_day(name, text)


def _not_a_day(name: str, text: str) -> NoReturn:
    raise InvalidRequest(f"{name} is {text[:40]!r}, must be a day like 2026-01-31", field=name)


def _shown(day: DayUsage) -> dict[str, Any]:
    tokens = day.usage
    prompt = tokens.hit_tokens + tokens.miss_tokens
    return {
        "object": "usage.day",
        "day": day.day,
        "key_id": day.key_id or None,
        "model": day.model,
        "num_requests": day.num_requests,
        "prompt_tokens": prompt,
        "prompt_cache_hit_tokens": tokens.hit_tokens,
        "prompt_cache_miss_tokens": tokens.miss_tokens,
        "completion_tokens": tokens.completion_tokens,
        "reasoning_tokens": tokens.reasoning_tokens,
        "total_tokens": prompt + tokens.completion_tokens,
        "cost": shown(day.cost),
    }
