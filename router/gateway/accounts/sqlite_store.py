"""Accounts in a SQLite file, shared by the gateways and commands of one machine (WAL; not on a network file system)."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from baleen.errors import ConfigError, NotReady, UnknownName
from router.gateway.accounts.buckets import Bucket, allowance, filled, wait_s
from router.gateway.accounts.living import Living
from router.gateway.accounts.money import MOST_UNITS, PICO, Usage
from router.gateway.accounts.records import Allowance, DayUsage, Entry, Key, Opening, Refused
from router.gateway.accounts.schema import migrate

BUSY_TIMEOUT_S = 5.0
_CONCURRENCY_RETRY_S = 1.0
_KEY_COLUMNS = (
    "key_id, digest, tenant, name, created_at, expires_at, revoked_at, models, requests_per_minute, "
    "tokens_per_minute, concurrency, is_operator, balance"
)


class SqliteStore:
    """An AccountStore. Made and used in any one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it, readable by this user alone. Raises ConfigError if it cannot be used."""
        self._deep = 0
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._living = Living(path.with_name(f"{path.name}.gateways"))
        except OSError as error:
            raise ConfigError(f"the accounts {path} cannot be opened: {error.strerror}") from error
        self._connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            migrate(self._connection, str(path))
        except sqlite3.Error as error:
            self.close()
            raise ConfigError(f"the accounts {path} cannot be used: {error}") from error
        except ConfigError:
            self.close()
            raise

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:
        """All that is done inside happens together; inside another one, as a part of that.

        durable: on the disk before it returns; otherwise a loss of power may take it back, the end of a process not.
        Raises NotReady if the file cannot be used now.
        """
        begin, end, undo = "BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"
        if self._deep:
            name = f"level_{self._deep}"
            begin, end = f"SAVEPOINT {name}", f"RELEASE {name}"
            undo = f"ROLLBACK TO {name}; RELEASE {name}"
        try:
            if not self._deep:
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._connection.execute(begin)
            self._deep += 1
            try:
                yield
                self._connection.execute(end)
            except BaseException:
                for statement in undo.split("; "):
                    # a full disk ends the transaction by itself
                    if self._connection.in_transaction:
                        self._connection.execute(statement)
                raise
            finally:
                self._deep -= 1
        except sqlite3.OperationalError as error:
            raise NotReady(f"the accounts cannot be used now: {error}") from error

    def add_key(self, key: Key, *, balance: int | None) -> None:
        """Keep a new key; see AccountStore."""
        assert (balance is not None) is key.has_balance
        values = (
            *(key.key_id, key.digest, key.tenant, key.name, key.created_at, key.expires_at, key.revoked_at),
            *(json.dumps(key.models), key.requests_per_minute, key.tokens_per_minute, key.concurrency),
            int(key.is_operator),
        )
        with self.transaction():
            self._connection.execute(
                f"INSERT INTO keys ({_KEY_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                (*values, 0 if key.has_balance else None),
            )
            if balance:
                self.credit(key.key_id, balance, note="first", wall_s=key.created_at)
            self._keys_changed()

    def all_keys(self) -> list[Key]:
        """All keys, oldest first."""
        with self.transaction(durable=False):
            rows = self._connection.execute(f"SELECT {_KEY_COLUMNS} FROM keys ORDER BY created_at, key_id").fetchall()
        return [_key(row) for row in rows]

    def keys_version(self) -> int:
        """Changes when a key does."""
        return int(self._read("SELECT value FROM meta WHERE name = 'keys_version'")[0][0])

    def revoke(self, key_id: str, *, wall_s: float) -> Key:
        """End a key for good."""
        with self.transaction():
            key = self._known_key(key_id)
            if key.revoked_at is None:
                self._connection.execute("UPDATE keys SET revoked_at = ? WHERE key_id = ?", (wall_s, key_id))
                self._keys_changed()
            return self._known_key(key_id)

    def credit(self, key_id: str, amount: int, *, note: str, wall_s: float) -> int:
        """Add picos to a balance."""
        with self.transaction():
            if not self._known_key(key_id).has_balance:
                raise ConfigError(f"the key {key_id} was made without a balance, so nothing can be added to it")
            balance = (self.balance(key_id) or 0) + amount
            if balance > MOST_UNITS * PICO:
                raise ConfigError(f"the balance of {key_id} would be above {MOST_UNITS}, which is the most")
            self._connection.execute(
                "INSERT INTO credits (key_id, at, note, amount) VALUES (?,?,?,?)", (key_id, wall_s, note, amount)
            )
            self._connection.execute("UPDATE keys SET balance = ? WHERE key_id = ?", (balance, key_id))
            return balance

    def balance(self, key_id: str) -> int | None:
        """Picos that are left, reservations included."""
        rows = self._read("SELECT balance FROM keys WHERE key_id = ?", (key_id,))
        return rows[0][0] if rows else None

    def take_request(self, key: Key, *, now_s: float) -> Allowance | None:
        """Count a call against the limit of requests."""
        if key.requests_per_minute is None:
            return None
        with self.transaction(durable=False):
            return self._take(key.key_id, "requests", 1, limit=key.requests_per_minute, now_s=now_s)

    def open(self, opening: Opening, *, now_s: float, wall_s: float) -> Allowance | None:
        """Reserve what a request may use."""
        left, tokens = None, 0
        with self.transaction(durable=False):
            if opening.key_id:
                key = self._key(opening.key_id)
                if key is None:
                    raise Refused("key", "The API key is not valid.")
                key.check(wall_s)
                self._check_concurrency(key)
                self._check_balance(opening)
                if key.tokens_per_minute is not None:
                    # one that is larger than a minute's worth starts from a full bucket and leaves it in debt
                    tokens = min(opening.most_tokens, key.tokens_per_minute)
                    left = self._take(key.key_id, "tokens", tokens, limit=key.tokens_per_minute, now_s=now_s)
            self._connection.execute(
                "INSERT INTO open_requests (request_id, key_id, tenant, model, gateway, tokens, cost) "
                "VALUES (?,?,?,?,?,?,?)",
                (
                    *(opening.request_id, opening.key_id, opening.tenant, opening.model, self._living.name),
                    *(tokens, opening.most_cost),
                ),
            )
        return left

    def settle(self, entry: Entry, *, now_s: float, wall_s: float) -> bool:
        """Write the entry of an open request."""
        with self.transaction():
            found = self._connection.execute(
                "DELETE FROM open_requests WHERE request_id = ? RETURNING key_id, tenant, model, tokens",
                (entry.request_id,),
            ).fetchall()
            if not found:
                return False
            key_id, tenant, model, reserved = found[0]
            usage = entry.usage
            self._connection.execute(
                "INSERT INTO ledger (request_id, key_id, tenant, model, at, day, outcome, hit_tokens, miss_tokens, "
                "completion_tokens, reasoning_tokens, cost) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
                (
                    *(entry.request_id, key_id, tenant, model, wall_s, day_of(wall_s), entry.outcome),
                    *(usage.hit_tokens, usage.miss_tokens, usage.completion_tokens, usage.reasoning_tokens),
                    entry.cost,
                ),
            )
            self._connection.execute(
                "UPDATE keys SET balance = balance - ? WHERE key_id = ? AND balance IS NOT NULL", (entry.cost, key_id)
            )
            self._give_back(
                key_id, reserved - usage.hit_tokens - usage.miss_tokens - usage.completion_tokens, now_s=now_s
            )
        return True

    def recover(self, *, now_s: float, wall_s: float) -> int:
        """Write entries without cost for requests whose gateway died."""
        gateways = [name for (name,) in self._read("SELECT DISTINCT gateway FROM open_requests")]
        dead = [name for name in gateways if self._living.is_dead(name)]
        num_lost = 0
        for gateway in dead:
            with self.transaction():
                rows = self._read("SELECT request_id FROM open_requests WHERE gateway = ?", (gateway,))
                for (request_id,) in rows:
                    lost = Entry(request_id=request_id, outcome="lost", usage=Usage(), cost=0)
                    num_lost += self.settle(lost, now_s=now_s, wall_s=wall_s)
            self._living.forget(gateway)
        return num_lost

    def usage(self, key_id: str | None, *, first_day: str, last_day: str) -> list[DayUsage]:
        """Sums by day, key and model."""
        rows = self._read(
            "SELECT day, key_id, model, count(*), sum(hit_tokens), sum(miss_tokens), sum(completion_tokens), "
            "sum(reasoning_tokens), sum(cost) FROM ledger WHERE day BETWEEN ?1 AND ?2 AND (?3 IS NULL OR key_id = ?3) "
            "GROUP BY day, key_id, model ORDER BY day, key_id, model",
            (first_day, last_day, key_id),
        )
        return [
            DayUsage(day=row[0], key_id=row[1], model=row[2], num_requests=row[3], usage=Usage(*row[4:8]), cost=row[8])
            for row in rows
        ]

    def num_open(self, key_id: str) -> int:
        """Requests of a key that have not ended."""
        return int(self._read("SELECT count(*) FROM open_requests WHERE key_id = ?", (key_id,))[0][0])

    def close(self) -> None:
        """Close the file; what this process left open is recovered by the next one."""
        self._connection.close()
        self._living.close()

    def _read(self, query: str, values: tuple[object, ...] = ()) -> list[tuple]:  # type: ignore[type-arg]
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            raise NotReady(f"the accounts cannot be used now: {error}") from error

    def _keys_changed(self) -> None:
        self._connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'keys_version'")

    def _key(self, key_id: str) -> Key | None:
        rows = self._read(f"SELECT {_KEY_COLUMNS} FROM keys WHERE key_id = ?", (key_id,))
        return _key(rows[0]) if rows else None

    def _known_key(self, key_id: str) -> Key:
        key = self._key(key_id)
        if key is None:
            raise UnknownName(f"there is no key {key_id!r}; `baleen keys list` shows them")
        return key

    def _check_concurrency(self, key: Key) -> None:
        if key.concurrency is not None and self.num_open(key.key_id) >= key.concurrency:
            raise Refused(
                "concurrency",
                f"The API key has {key.concurrency} requests running, which is its limit.",
                retry_after_s=_CONCURRENCY_RETRY_S,
            )

    def _check_balance(self, opening: Opening) -> None:
        balance = self.balance(opening.key_id)
        if balance is None:
            return
        ((reserved,),) = self._read(
            "SELECT coalesce(sum(cost), 0) FROM open_requests WHERE key_id = ?", (opening.key_id,)
        )
        if balance - reserved < opening.most_cost or balance <= 0:
            raise Refused("balance", "Insufficient Balance")

    def _bucket(self, key_id: str, kind: str) -> Bucket | None:
        rows = self._read("SELECT level, at_s FROM buckets WHERE key_id = ? AND kind = ?", (key_id, kind))
        return Bucket(*rows[0]) if rows else None

    def _keep(self, key_id: str, kind: str, bucket: Bucket) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO buckets (key_id, kind, level, at_s) VALUES (?,?,?,?)",
            (key_id, kind, bucket.level, bucket.at_s),
        )

    def _take(self, key_id: str, kind: str, amount: int, *, limit: int, now_s: float) -> Allowance:
        bucket = filled(self._bucket(key_id, kind), limit=limit, now_s=now_s)
        waits_s = wait_s(bucket, amount, limit=limit)
        if waits_s > 0:
            assert kind in ("requests", "tokens")
            raise Refused(
                "requests" if kind == "requests" else "tokens",
                f"Rate limit reached: {limit} {kind} per minute; this request needs {amount}, "
                f"{max(0, int(bucket.level))} are left.",
                retry_after_s=waits_s,
            )
        bucket = Bucket(bucket.level - amount, now_s)
        self._keep(key_id, kind, bucket)
        return allowance(bucket, limit=limit)

    def _give_back(self, key_id: str, amount: int, *, now_s: float) -> None:
        """amount below 0: it used more than was reserved."""
        key = self._key(key_id) if key_id else None
        if key is not None and key.tokens_per_minute is not None:
            bucket = filled(self._bucket(key_id, "tokens"), limit=key.tokens_per_minute, now_s=now_s)
            level = min(float(key.tokens_per_minute), bucket.level + amount)
            self._keep(key_id, "tokens", Bucket(level, now_s))


def day_of(wall_s: float) -> str:
    """The day in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime(wall_s))


def _key(row: tuple) -> Key:  # type: ignore[type-arg]
    *values, balance = row
    names = [name.strip() for name in _KEY_COLUMNS.split(",")]
    fields = dict(zip(names, values, strict=False))
    fields["models"] = tuple(json.loads(fields["models"]))
    fields["is_operator"] = bool(fields["is_operator"])
    return Key(**fields, has_balance=balance is not None)
