"""The tables of accounts in SQLite, by version, and how an older file becomes a new one."""

from __future__ import annotations

import sqlite3

from baleen.errors import ConfigError

APPLICATION_ID = 0x62616C65
"""In the header of the file: says that it is ours."""

_VERSION_1 = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT",
    "INSERT INTO meta VALUES ('keys_version', 0)",
    """CREATE TABLE keys (
        key_id TEXT PRIMARY KEY, digest BLOB NOT NULL, tenant TEXT NOT NULL, name TEXT NOT NULL,
        created_at REAL NOT NULL, expires_at REAL, revoked_at REAL, models TEXT NOT NULL,
        requests_per_minute INTEGER, tokens_per_minute INTEGER, concurrency INTEGER,
        balance INTEGER
    ) STRICT""",
    """CREATE TABLE buckets (
        key_id TEXT NOT NULL, kind TEXT NOT NULL, level REAL NOT NULL, at_s REAL NOT NULL,
        PRIMARY KEY (key_id, kind)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE open_requests (
        request_id TEXT PRIMARY KEY, key_id TEXT NOT NULL, tenant TEXT NOT NULL, model TEXT NOT NULL,
        gateway TEXT NOT NULL, tokens INTEGER NOT NULL, cost INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX open_by_key ON open_requests (key_id, cost)",
    "CREATE INDEX open_by_gateway ON open_requests (gateway)",
    """CREATE TABLE ledger (
        number INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL UNIQUE, key_id TEXT NOT NULL,
        tenant TEXT NOT NULL, model TEXT NOT NULL, at REAL NOT NULL, day TEXT NOT NULL, outcome TEXT NOT NULL,
        hit_tokens INTEGER NOT NULL, miss_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
        reasoning_tokens INTEGER NOT NULL, cost INTEGER NOT NULL CHECK (cost >= 0)
    ) STRICT""",
    "CREATE INDEX ledger_by_day ON ledger (key_id, day)",
    """CREATE TABLE credits (
        number INTEGER PRIMARY KEY AUTOINCREMENT, key_id TEXT NOT NULL, at REAL NOT NULL, note TEXT NOT NULL,
        amount INTEGER NOT NULL CHECK (amount > 0)
    ) STRICT""",
    *(
        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'the table {table} is append-only'); END"
        for table in ("ledger", "credits")
        for verb in ("UPDATE", "DELETE")
    ),
)

_VERSION_2 = ("ALTER TABLE keys ADD COLUMN is_operator INTEGER NOT NULL DEFAULT 0",)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_VERSION_1, _VERSION_2)
"""Statements that lead from each version to the next; never changed once released."""


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring a file to the newest version. Raises ConfigError if it is not ours, or of a newer baleen."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if owner != APPLICATION_ID and num_tables:
            raise ConfigError(f"{path} is a database of something else, no accounts of baleen")
        if version > len(MIGRATIONS):
            raise ConfigError(
                f"{path} has accounts of version {version}, written by a newer baleen; this one knows {len(MIGRATIONS)}"
            )
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        if version < len(MIGRATIONS):
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
