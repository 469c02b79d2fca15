"""Accounts as the gateway's event loop uses them: who calls, whether they may now, and what they owe in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from pathlib import Path

from baleen.clock import Clock
from baleen.errors import NotReady
from baleen.metrics import Sample
from baleen.telemetry import Log
from router.gateway.accounts.clerk import Clerk
from router.gateway.accounts.meters import AccountMeters
from router.gateway.accounts.money import Price, PriceList, Usage
from router.gateway.accounts.records import Allowance, DayUsage, Entry, Key, Opening, Outcome, Reason, Refused
from router.gateway.accounts.secret import key_id, matches
from router.gateway.accounts.sqlite_store import SqliteStore

KEYS_FRESH_S = 1.0
"""How old the known keys may be when one is checked: a revoked key is refused after this time at most."""

NEW_KEY_WAIT_S = 0.05
"""How long a call with an unknown key waits for a second look, and how old the keys may be for that."""

RECOVER_EVERY_S = 5.0
ANONYMOUS = "anonymous"
"""Tenant of all calls where no keys are asked for."""

_NO_KEY = "The API key is not valid."


class Charge:
    """An open request of the ledger; `settle` ends it, once."""

    def __init__(self, accounts: Accounts, request_id: str, price: Price, tokens_left: Allowance | None) -> None:
        self._accounts = accounts
        self._request_id = request_id
        self._price = price
        self._settled = False
        self.tokens_left = tokens_left

    def cost(self, usage: Usage) -> int:
        """Picos for `usage`."""
        return self._price.cost(usage)

    def settle(self, usage: Usage, outcome: Outcome) -> None:
        """Write the entry, in the background; only the first call counts. Later reads of this gateway see it."""
        if not self._settled:
            self._settled = True
            self._accounts.write(
                Entry(request_id=self._request_id, outcome=outcome, usage=usage, cost=self._price.cost(usage))
            )


class Accounts:
    """For one event loop, from `start` to `close`."""

    def __init__(
        self, path: Path, prices: PriceList, *, clock: Clock, log: Log, wall: Callable[[], float] = time.time
    ) -> None:
        """Raises ConfigError if the database cannot be used."""
        self.prices = prices
        self.meters = AccountMeters()
        self._clerk = Clerk(SqliteStore(path))
        self._clock = clock
        self._wall = wall
        self._log = log
        self._keys: dict[str, Key] = {}
        self._version = -1
        self._read_at: float | None = None
        self._reading = asyncio.Lock()
        self._recovery: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Begin; returns how many keys can be used."""
        self._clerk.start()
        await self._recover()
        await self._read_keys(KEYS_FRESH_S)
        self._recovery = asyncio.create_task(self._keep_recovering())
        return sum(key.revoked_at is None for key in self._keys.values())

    async def close(self) -> None:
        """Write what is to be written."""
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.gather(self._recovery, return_exceptions=True)
        await asyncio.to_thread(self._clerk.close)

    @property
    def num_failures(self) -> int:
        """Transactions that the database could not do."""
        return self._clerk.num_failures

    def samples(self) -> Iterator[Sample]:
        """Its metrics."""
        yield from self.meters.samples()
        yield "gateway_account_failures_total", (), self.num_failures

    def refuse(self, reason: Reason, message: str) -> Refused:
        """A refusal, counted."""
        self.meters.refused[reason] += 1
        return Refused(reason, message)

    async def authenticate(self, secrets: Collection[str]) -> Key:
        """The key that a call shows. Raises Refused without a good one, NotReady if keys cannot be read."""
        try:
            if not secrets:
                raise Refused("key", "No API key was given: send the header `Authorization: Bearer KEY`.")
            if len(set(secrets)) > 1:
                raise Refused("key", "Several API keys were given; send one.")
            await self._read_keys(KEYS_FRESH_S)
            secret = next(iter(secrets))
            key = self._find(secret)
            if key is None and key_id(secret) is not None:
                # it may be so new that it is not known here
                await asyncio.sleep(NEW_KEY_WAIT_S)
                await self._read_keys(NEW_KEY_WAIT_S)
                key = self._find(secret)
            if key is None:
                raise Refused("key", _NO_KEY)
            key.check(self._wall())
        except Refused as error:
            self.meters.refused[error.reason] += 1
            raise
        return key

    async def count_call(self, key: Key) -> Allowance | None:
        """Count a call against the key's requests per minute. Raises Refused when they are used up."""
        if key.requests_per_minute is None:
            return None
        now_s = self._clock.now()
        try:
            return await self._clerk.ask(lambda store: store.take_request(key, now_s=now_s))
        except Refused as error:
            self.meters.refused[error.reason] += 1
            raise

    async def open(
        self, key: Key | None, *, request_id: str, model: str, served_as: str, prompt_tokens: int, output_tokens: int
    ) -> Charge:
        """Let a request start, of at most that many tokens. Raises Refused, or NotReady.

        request_id: chosen by the gateway, never used before. model: as asked for; served_as: its first name. key None:
        no keys are asked for.
        """
        price = self.prices.of(model, served_as)
        opening = Opening(
            request_id=request_id,
            key_id=key.key_id if key else "",
            tenant=key.tenant if key else ANONYMOUS,
            model=served_as,
            most_tokens=prompt_tokens + output_tokens,
            most_cost=price.most(prompt_tokens, output_tokens),
        )
        now_s, wall_s = self._clock.now(), self._wall()
        try:
            if key is not None:
                key.check_model(model, served_as)
            left = await self._clerk.ask(lambda store: store.open(opening, now_s=now_s, wall_s=wall_s))
        except Refused as error:
            self.meters.refused[error.reason] += 1
            raise
        except asyncio.CancelledError:
            # it may be open by now, or soon; what is written behind it ends it
            self.write(Entry(request_id=request_id, outcome="cancelled", usage=Usage(), cost=0))
            raise
        return Charge(self, request_id, price, left)

    async def balance(self, key: Key) -> int | None:
        """Picos, or None if the key has no balance."""
        return await self._clerk.ask(lambda store: store.balance(key.key_id))

    async def usage(self, key: Key | None, *, first_day: str, last_day: str) -> list[DayUsage]:
        """Sums of the key by day and model; key None: of calls without one."""
        name = key.key_id if key else ""
        return await self._clerk.ask(lambda store: store.usage(name, first_day=first_day, last_day=last_day))

    def write(self, entry: Entry) -> None:
        """Have an entry written; for Charge."""
        now_s, wall_s = self._clock.now(), self._wall()
        try:
            done = self._clerk.tell(lambda store: store.settle(entry, now_s=now_s, wall_s=wall_s))
        except NotReady as error:
            self._log.error("an entry of the ledger was lost", request_id=entry.request_id, error=str(error))
            return
        done.add_done_callback(lambda answer: self._written(entry, answer))

    def _written(self, entry: Entry, answer: Future[bool]) -> None:
        # in the thread of the clerk, which alone counts entries
        error = answer.exception()
        if error is not None:
            self._log.error("an entry of the ledger was lost", request_id=entry.request_id, error=str(error))
        elif answer.result():
            self.meters.wrote(entry)

    def _find(self, secret: str) -> Key | None:
        key = self._keys.get(key_id(secret) or "")
        return key if matches(secret, key.digest if key else None) else None

    async def _read_keys(self, most_age_s: float) -> None:
        """See to it that the known keys are younger than that."""
        if self._is_fresh(most_age_s):
            return
        async with self._reading:
            if self._is_fresh(most_age_s):
                return
            now_s = self._clock.now()
            version = await self._clerk.ask(lambda store: store.keys_version())
            if version != self._version:
                self._keys = {key.key_id: key for key in await self._clerk.ask(lambda store: store.all_keys())}
                # read before the keys were: at worst they are read once more
                self._version = version
            self._read_at = now_s

    def _is_fresh(self, most_age_s: float) -> bool:
        return self._read_at is not None and self._clock.now() - self._read_at < most_age_s

    async def _keep_recovering(self) -> None:
        while True:
            await asyncio.sleep(RECOVER_EVERY_S)
            try:
                await self._recover()
            except NotReady as error:
                self._log.warning("requests of ended gateways could not be looked for", error=str(error))

    async def _recover(self) -> None:
        now_s, wall_s = self._clock.now(), self._wall()
        num_lost = await self._clerk.ask(lambda store: store.recover(now_s=now_s, wall_s=wall_s))
        self.meters.entries["lost"] += num_lost
        if num_lost:
            self._log.warning("requests of ended gateways cost nothing", requests=num_lost)
