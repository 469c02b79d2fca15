"""`baleen keys create | list | revoke | credit | usage`: API keys of the gateway, in the accounts of one cluster."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from baleen.cluster_config import ClusterConfig
from baleen.cluster_file import load_cluster_config
from baleen.errors import ConfigError
from cluster.run_state import accounts_file
from router.gateway.accounts.money import parse_amount, shown
from router.gateway.accounts.records import DayUsage, Key
from router.gateway.accounts.secret import digest, key_id, new_secret
from router.gateway.accounts.sqlite_store import SqliteStore, day_of

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_S = 100 * 365 * 86400


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command; each subcommand sets `run`, a function of the arguments that returns the exit code."""
    parser = subparsers.add_parser("keys", help="API keys of the gateway: limits, balances, usage")
    commands = parser.add_subparsers(dest="keys_command", required=True, metavar="create|list|revoke|credit|usage")
    create = commands.add_parser("create", help="make a key; it is shown once and never again")
    create.add_argument("--tenant", required=True, help="keys of one tenant share cached prefixes, others never do")
    create.add_argument("--label", default="", metavar="TEXT", help="for people")
    create.add_argument(
        "--operator", action="store_true", help="may see the cluster and /metrics, and raise priorities"
    )
    create.add_argument("--expires", metavar="TIME", help="how long it is good: 90d, 12h, 30m")
    create.add_argument("--models", metavar="A,B", help="names of models that it may ask for (all)")
    create.add_argument("--requests-per-minute", type=int, metavar="N", help="(no limit)")
    create.add_argument("--tokens-per-minute", type=int, metavar="N", help="of prompts and answers (no limit)")
    create.add_argument("--concurrency", type=int, metavar="N", help="requests at the same time (no limit)")
    create.add_argument("--balance", metavar="AMOUNT", help="what it may cost, 12.50 for example (no limit)")
    listing = commands.add_parser("list", help="all keys, without what must stay secret")
    revoke = commands.add_parser("revoke", help="end a key: running gateways refuse it within 5 seconds")
    revoke.add_argument("key", metavar="ID", help="as `baleen keys list` shows it, or the key itself")
    credit = commands.add_parser("credit", help="add to the balance of a key")
    credit.add_argument("key", metavar="ID")
    credit.add_argument("amount", metavar="AMOUNT", help="12.50 for example")
    credit.add_argument("--note", default="", help="kept beside it")
    usage = commands.add_parser("usage", help="tokens and cost by day, key and model")
    usage.add_argument("--key", metavar="ID", help="(all keys)")
    usage.add_argument("--days", type=int, default=30, metavar="N", help="how many days, today included (30)")
    for name, command, run in (
        ("create", create, run_create),
        ("list", listing, run_list),
        ("revoke", revoke, run_revoke),
        ("credit", credit, run_credit),
        ("usage", usage, run_usage),
    ):
        command.add_argument("--config", type=Path, metavar="FILE", help="cluster file (the cluster without one)")
        command.add_argument("--name", metavar="NAME", help="of the cluster (default)")
        command.add_argument("--database", type=Path, metavar="FILE", help="of the accounts (that of the cluster)")
        if name in ("create", "list", "usage"):
            command.add_argument("--json", action="store_true", help="JSON instead of text")
        command.set_defaults(run=run)


def run_create(args: argparse.Namespace) -> int:
    """Make a key and show it."""
    now_s = time.time()
    secret = new_secret()
    balance = None if args.balance is None else parse_amount(args.balance, name="--balance")
    key = Key(
        key_id=key_id(secret) or "",
        digest=digest(secret),
        tenant=args.tenant,
        name=args.label,
        created_at=now_s,
        expires_at=None if args.expires is None else now_s + _seconds(args.expires),
        models=tuple(sorted({name.strip().lower() for name in args.models.split(",")})) if args.models else (),
        requests_per_minute=args.requests_per_minute,
        tokens_per_minute=args.tokens_per_minute,
        concurrency=args.concurrency,
        has_balance=balance is not None,
        is_operator=args.operator,
    )
    store = _store(args)
    try:
        store.add_key(key, balance=balance)
    finally:
        store.close()
    if args.json:
        sys.stdout.write(json.dumps({"id": key.key_id, "key": secret, "tenant": key.tenant}) + "\n")
    else:
        # the key alone on stdout, so that `KEY=$(baleen keys create ...)` works
        sys.stderr.write(
            f"Key {key.key_id} of tenant {key.tenant}. It is shown this once; only a hash of it is kept.\n"
        )
        sys.stdout.write(f"{secret}\n")
    return 0


def run_list(args: argparse.Namespace) -> int:
    """Show all keys."""
    store = _store(args)
    try:
        keys = [(key, store.balance(key.key_id)) for key in store.all_keys()]
    finally:
        store.close()
    now_s = time.time()
    if args.json:
        sys.stdout.write(json.dumps([_as_json(key, balance, now_s) for key, balance in keys], indent=2) + "\n")
        return 0
    rows = [("ID", "TENANT", "STATE", "EXPIRES", "MODELS", "REQ/MIN", "TOK/MIN", "CONC", "BALANCE", "LABEL")]
    rows += [
        (
            *(key.key_id, key.tenant, _state(key, now_s), day_of(key.expires_at) if key.expires_at else "-"),
            *(",".join(key.models) or "all", _limit(key.requests_per_minute), _limit(key.tokens_per_minute)),
            *(_limit(key.concurrency), "-" if balance is None else shown(balance), key.name),
        )
        for key, balance in keys
    ]
    sys.stdout.write(_table(rows))
    return 0


def run_revoke(args: argparse.Namespace) -> int:
    """End a key. Raises UnknownName if there is none."""
    store = _store(args)
    try:
        key = store.revoke(_id(args.key), wall_s=time.time())
    finally:
        store.close()
    sys.stdout.write(f"revoked {key.key_id} of tenant {key.tenant}\n")
    return 0


def run_credit(args: argparse.Namespace) -> int:
    """Add to a balance. Raises UnknownName, or ConfigError if the key was made without one."""
    amount = parse_amount(args.amount, name="AMOUNT")
    store = _store(args)
    try:
        balance = store.credit(_id(args.key), amount, note=args.note, wall_s=time.time())
    finally:
        store.close()
    sys.stdout.write(f"balance {shown(balance)}\n")
    return 0


def run_usage(args: argparse.Namespace) -> int:
    """Show sums of the ledger."""
    if not 1 <= args.days <= 36500:
        raise ConfigError(f"--days is {args.days}, must be from 1 to 36500")
    now_s = time.time()
    store = _store(args)
    try:
        days = store.usage(
            _id(args.key) if args.key else None,
            first_day=day_of(max(0.0, now_s - (args.days - 1) * 86400)),
            last_day=day_of(now_s),
        )
    finally:
        store.close()
    if args.json:
        sys.stdout.write(json.dumps([_sums(day) for day in days], indent=2) + "\n")
        return 0
    rows = [("DAY", "KEY", "MODEL", "REQUESTS", "HIT", "MISS", "OUTPUT", "COST")]
    rows += [
        (
            *(day.day, day.key_id or "-", day.model, f"{day.num_requests}"),
            *(f"{day.usage.hit_tokens}", f"{day.usage.miss_tokens}", f"{day.usage.completion_tokens}", shown(day.cost)),
        )
        for day in days
    ]
    sys.stdout.write(_table(rows))
    return 0


def _store(args: argparse.Namespace) -> SqliteStore:
    config = load_cluster_config(args.config) if args.config is not None else ClusterConfig()
    config = replace(config, name=args.name) if args.name is not None else config
    return SqliteStore(args.database or accounts_file(config))


def _id(text: str) -> str:
    return key_id(text) or text


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 0 < seconds <= _LONGEST_S:
        raise ConfigError(f"--expires is {text!r}, must be a time like 90d, 12h or 30m, at most 36500d")
    return seconds


def _state(key: Key, now_s: float) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and now_s >= key.expires_at else "good"


def _limit(value: int | None) -> str:
    return "-" if value is None else str(value)


def _as_json(key: Key, balance: int | None, now_s: float) -> dict[str, object]:
    return {
        "id": key.key_id,
        "tenant": key.tenant,
        "label": key.name,
        "state": _state(key, now_s),
        "operator": key.is_operator,
        "created_at": int(key.created_at),
        "expires_at": None if key.expires_at is None else int(key.expires_at),
        "models": list(key.models),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "concurrency": key.concurrency,
        "balance": None if balance is None else shown(balance),
    }


def _sums(day: DayUsage) -> dict[str, object]:
    return {
        "day": day.day,
        "key": day.key_id,
        "model": day.model,
        "requests": day.num_requests,
        "prompt_cache_hit_tokens": day.usage.hit_tokens,
        "prompt_cache_miss_tokens": day.usage.miss_tokens,
        "completion_tokens": day.usage.completion_tokens,
        "reasoning_tokens": day.usage.reasoning_tokens,
        "cost": shown(day.cost),
    }


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)
