"""The router as a process of its own, for as long as whoever started it lives: its standard input ends with that.

usage: python -m cluster.router_process --config FILE      FILE: a router.config.RouterProcessConfig as JSON

One line on stdout, the address, once it listens; the log goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path
from threading import Thread

import uvloop

from baleen.errors import BaleenError
from baleen.telemetry import write_stderr
from router.config import RouterProcessConfig, load_router_config
from router.main import Router


async def serve(config: RouterProcessConfig) -> None:
    """Serve until SIGTERM, SIGINT or the end of stdin, then drain."""
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    Thread(target=_await_end_of_input, args=(loop, leave), name="supervisor", daemon=True).start()
    router = Router(config)
    try:
        address = await router.start()
        sys.stdout.write(f"{address}\n")
        sys.stdout.flush()
        await leave.wait()
    finally:
        await router.stop()


def _await_end_of_input(loop: asyncio.AbstractEventLoop, leave: asyncio.Event) -> None:
    while os.read(0, 1 << 12):
        pass
    loop.call_soon_threadsafe(leave.set)


def main() -> int:
    """Run a router; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster.router_process", description="A baleen router.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    path = parser.parse_args().config
    try:
        uvloop.run(serve(load_router_config(path)))
    except BaleenError as error:
        write_stderr(f"router: {error}\n")
        return error.exit_code
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
