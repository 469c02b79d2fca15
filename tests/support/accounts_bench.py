"""A file of accounts in a test: its keys, a clock, and as many gateways on it as are wanted."""

from __future__ import annotations

import asyncio

from baleen.accounts_config import PriceConfig
from baleen.telemetry import Log
from router.gateway.accounts.accounts import Accounts
from router.gateway.accounts.money import PriceList
from router.gateway.accounts.records import Key
from router.gateway.accounts.secret import digest, key_id, new_secret
from router.gateway.accounts.sqlite_store import SqliteStore
from tests.support.clock import ManualClock

PRICES = PriceList([PriceConfig(model="m", input_hit="0.028", input_miss="0.28", output="0.42")])
WALL = 1_770_000_000.0
DAYS = {"first_day": "0000-00-00", "last_day": "9999-99-99"}


class Bench:
    """A database, a clock, and as many gateways on it as a test wants."""

    def __init__(self, folder):
        self.path = folder / "accounts.db"
        self.clock = ManualClock()
        self.wall_s = WALL
        self.lines = []
        self.said = asyncio.Event()

    def gateway(self):
        def write(line):
            self.lines.append(line)
            self.said.set()

        log = Log("info", write=write)
        return Accounts(self.path, PRICES, clock=self.clock, log=log, wall=lambda: self.wall_s)

    def add_key(self, *, balance=None, **limits):
        secret = new_secret()
        key = Key(
            key_id=key_id(secret),
            digest=digest(secret),
            tenant="t",
            created_at=WALL,
            has_balance=balance is not None,
            **limits,
        )
        store = SqliteStore(self.path)
        store.add_key(key, balance=balance)
        store.close()
        return secret, key

    def in_store(self, call):
        store = SqliteStore(self.path)
        try:
            return call(store)
        finally:
            store.close()


async def opened(gateway, key, number, *, prompt=10, output=20):
    return await gateway.open(
        key, request_id=f"r{number}", model="m", served_as="m", prompt_tokens=prompt, output_tokens=output
    )
