"""A gateway over real HTTP on loopback, in the event loop of a test or in a thread beside it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baleen.gateway_config import GatewayConfig
from baleen.telemetry import Log
from baleen.text.tokenizer import Tokenizer
from router.gateway.config import GatewayProcessConfig
from router.gateway.core import Core
from router.gateway.main import Gateway
from tests.support.real_tokenizer import real_tokenizer, write_real_tokenizer
from tests.support.scripted_router import Reply, ScriptedRouter
from tests.support.tiny_tokenizer import tiny_tokenizer


@dataclass(eq=False)
class Served:
    """url: without a path."""

    url: str
    core: Core
    router: ScriptedRouter


@contextlib.asynccontextmanager
async def http_gateway(reply: Reply, directory: Path, *, real: bool = False, **settings: Any) -> AsyncIterator[Served]:
    """A gateway without keys before a scripted router, both with the tiny tokenizer, or with DeepSeek-V3.2's own."""
    if real:
        write_real_tokenizer(directory)
    else:
        tiny_tokenizer().save(str(directory / "tokenizer.json"))
    tokenizer = real_tokenizer() if real else Tokenizer(tiny_tokenizer())
    async with ScriptedRouter(tokenizer, reply) as router:
        config = GatewayProcessConfig(
            listen="127.0.0.1:0",
            routers=(router.address,),
            model=str(directory),
            model_name="baleen",
            accounts=str(directory / "accounts" / "accounts.sqlite"),
            settings=GatewayConfig(**settings),
            drain_timeout_s=5.0,
        )
        gateway = Gateway(config, log=Log("off"))
        address = await gateway.start()
        try:
            yield Served(f"http://{address}", gateway.core, router)
        finally:
            await gateway.stop()


@contextlib.contextmanager
def gateway_thread(reply: Reply, directory: Path, **settings: Any) -> Iterator[Served]:
    """The same in a thread of its own, for clients that block."""
    loop = asyncio.new_event_loop()
    ready: threading.Event = threading.Event()
    done: asyncio.Event = asyncio.Event()
    served: list[Served] = []
    failed: list[BaseException] = []

    async def main() -> None:
        try:
            async with http_gateway(reply, directory, **settings) as one:
                served.append(one)
                ready.set()
                await done.wait()
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            ready.set()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    try:
        assert ready.wait(30.0)
        assert served, failed
        yield served[0]
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(30.0)
        loop.close()
