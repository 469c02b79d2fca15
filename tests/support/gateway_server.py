"""A gateway with its router and fake ranks in one event loop, over real HTTP and gRPC on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baleen.accounts_config import KeyMode, KeysConfig, PriceConfig
from baleen.gateway_config import GatewayConfig
from baleen.telemetry import Log
from baleen.text.tokenizer_files import tokenizer_files
from router.gateway.accounts.accounts import Accounts
from router.gateway.accounts.records import Key
from router.gateway.accounts.secret import digest, key_id, new_secret
from router.gateway.accounts.sqlite_store import SqliteStore
from router.gateway.config import GatewayProcessConfig
from router.gateway.core import Core
from router.gateway.main import Gateway
from tests.support.fake_rank import FakeRank
from tests.support.router_client import router_with

PRICES = (PriceConfig(model="baleen", input_hit="0.028", input_miss="0.28", output="0.42"),)
DAYS = {"first_day": "0000-00-00", "last_day": "9999-99-99"}


@dataclass(eq=False)
class Reply:
    """One answer as it stood on the wire. headers: lower-case names, the last of equal ones."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Data of the server-sent events that are JSON."""
        lines = self.body.decode().splitlines()
        return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


@dataclass(eq=False)
class GatewayServer:
    """A running gateway. log: the lines that it wrote."""

    port: int
    core: Core
    ranks: Sequence[FakeRank]
    database: Path
    log: list[str]

    @property
    def accounts(self) -> Accounts:
        return self.core.accounts

    def add_key(self, *, balance: int | None = None, tenant: str = "acme", **limits: Any) -> str:
        return add_key(self.database, balance=balance, tenant=tenant, **limits)

    async def raw(self, data: bytes, *, timeout_s: float = 30.0) -> bytes:
        """Whatever comes back for some bytes until the gateway closes; nothing, if it closes before it took them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(timeout_s):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def call(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        key: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
        host: str = "127.0.0.1",
    ) -> Reply:
        """One call on a connection of its own; the target goes out as it is."""
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close"]
        lines += [f"Authorization: Bearer {key}"] if key is not None else []
        lines += [f"Content-Type: application/json\r\nContent-Length: {len(raw)}"] if body is not None else []
        lines += [f"{name}: {value}" for name, value in headers]
        return parsed(await self.raw("\r\n".join([*lines, "", ""]).encode("latin-1") + raw))


def parsed(data: bytes) -> Reply:
    """One answer, its chunks put together. Status 0: none came, since the gateway closed before it took the call."""
    if not data:
        return Reply(0, {}, b"")
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        pieces = []
        while body:
            size, _, rest = body.partition(b"\r\n")
            pieces.append(rest[: int(size, 16)])
            body = rest[int(size, 16) + 2 :]
        body = b"".join(pieces)
    return Reply(int(first.split()[1]), headers, body)


def add_key(database: Path, *, balance: int | None = None, tenant: str = "acme", **limits: Any) -> str:
    """A new key of a file of accounts."""
    secret = new_secret()
    key = Key(
        key_id=key_id(secret) or "",
        digest=digest(secret),
        tenant=tenant,
        created_at=time.time(),
        has_balance=balance is not None,
        **limits,
    )
    store = SqliteStore(database)
    store.add_key(key, balance=balance)
    store.close()
    return secret


@contextlib.asynccontextmanager
async def gateway_server(folder: Path, *, mode: KeyMode = "required", **settings: Any) -> AsyncIterator[GatewayServer]:
    """A gateway over one rank that does everything. settings: of GatewayConfig."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "tokenizer.json").write_text(tokenizer_files("bytes", max_length=4096).tokenizer_json)
    database, lines = folder / "accounts.db", []
    log = Log("info", write=lines.append)
    # a gateway that asks for keys does not start without one
    add_key(database, tenant="first")
    async with contextlib.AsyncExitStack() as stack:
        ranks = [FakeRank()]
        client = await stack.enter_async_context(router_with(ranks, model=model, log=log))
        gateway = Gateway(
            GatewayProcessConfig(
                listen="127.0.0.1:0",
                routers=(client.address,),
                model=str(model),
                model_name="baleen",
                accounts=str(database),
                settings=GatewayConfig(keys=KeysConfig(mode=mode), prices=PRICES, **settings),
                drain_timeout_s=1.0,
            ),
            log=log,
        )
        address = await gateway.start()
        stack.push_async_callback(gateway.stop)
        yield GatewayServer(int(address.rpartition(":")[2]), gateway.core, ranks, database, lines)


def scenario(folder: Path, talk: Callable[[GatewayServer], Awaitable[Any]], **options: Any) -> Any:
    """Run `talk` with a gateway, for two minutes at most."""

    async def run() -> Any:
        async with gateway_server(folder, **options) as gateway:
            return await talk(gateway)

    return asyncio.run(asyncio.wait_for(run(), 120))
