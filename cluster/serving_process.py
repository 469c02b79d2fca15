"""A server of the cluster as a process of its own, for as long as whoever started it lives: its stdin ends with that.

One line on stdout, the address, once it listens; the log goes to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Protocol

import uvloop

from baleen.errors import BaleenError
from baleen.telemetry import write_stderr


class Server(Protocol):
    """What is served."""

    async def start(self) -> str:
        """Listen; returns the address."""
        ...

    async def stop(self) -> None:
        """Let running requests end, and leave."""
        ...


async def serve(server: Server) -> None:
    """Serve until SIGTERM, SIGINT or the end of stdin, then drain."""
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, leave.set)
    Thread(target=_await_end_of_input, args=(loop, leave), name="supervisor", daemon=True).start()
    try:
        address = await server.start()
        sys.stdout.write(f"{address}\n")
        sys.stdout.flush()
        await leave.wait()
    finally:
        await server.stop()


def run(kind: str, build: Callable[[Path], Server]) -> int:
    """A whole process: `build` makes the server from the file that --config names; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m cluster.{kind}_process", description=f"A baleen {kind}.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    path = parser.parse_args().config

    async def main() -> None:
        await serve(build(path))

    try:
        uvloop.run(main())
    except BaleenError as error:
        write_stderr(f"{kind}: {error}\n")
        return error.exit_code
    return os.EX_OK


def _await_end_of_input(loop: asyncio.AbstractEventLoop, leave: asyncio.Event) -> None:
    while os.read(0, 1 << 12):
        pass
    loop.call_soon_threadsafe(leave.set)
