"""A rank process and what a supervisor does with it: commands in, events out, bounded waits, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

REPO = Path(__file__).resolve().parents[2]
WAIT_S = 120.0


class RankClient:
    """One rank. `events` are those seen so far; `log` is its stderr once it has ended."""

    def __init__(self, config: dict[str, Any], directory: Path, name: str = "rank", *, sabotage: str = "") -> None:
        """sabotage: Python that runs in the process before the rank does."""
        self.events: list[dict[str, Any]] = []
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._log = directory / f"{name}.log"
        path = directory / f"{name}.json"
        path.write_text(json.dumps(config))
        program = ["-c", f"{sabotage}\nfrom workers.main import main\nmain()"] if sabotage else ["-m", "workers.main"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "--config", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=REPO,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        """Its stderr so far."""
        return self._log.read_text()

    def send(self, **command: Any) -> None:
        """Send one command; `type` and the fields of it."""
        self.send_raw(json.dumps(command).encode() + b"\n")

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def close_stdin(self) -> None:
        """Go away, as a supervisor that dies does."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        """Signal the process."""
        self.process.send_signal(number)

    def expect(self, wanted: Callable[[dict[str, Any]], bool] | str, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """The next event of a type, or that fits; others are noted in `events` on the way."""
        fits = (lambda event: event["type"] == wanted) if isinstance(wanted, str) else wanted
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(f"no {wanted} within {timeout_s} s; seen {self.events[-3:]}\n{self.log}") from None
            if not line:
                raise AssertionError(f"the rank ended without {wanted}; seen {self.events[-3:]}\n{self.log}")
            event = json.loads(line)
            self.events.append(event)
            if fits(event):
                return event

    def expect_output(self, request_id: str) -> None:
        """Wait for the next token of a request."""
        self.expect(lambda event: any(output["id"] == request_id for output in event.get("outputs", ())))

    def expect_finish(self, request_id: str) -> dict[str, Any]:
        """The last output of a request with one completion; waits for it unless it was seen."""
        while True:
            for event in self.events:
                for output in event.get("outputs", ()):
                    if output["id"] == request_id and "finish" in output:
                        return output
            self.expect("step")

    def tokens_of(self, request_id: str) -> list[int]:
        """All tokens of a request seen so far."""
        return [
            token
            for event in self.events
            for output in event.get("outputs", ())
            if output["id"] == request_id
            for token in output["token_ids"]
        ]

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """The exit code; all events up to the end are then in `events`."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        while (line := self._lines.get(timeout=1.0)) != b"":
            self.events.append(json.loads(line))
        return code

    def kill(self) -> None:
        """End it by force, if it still lives, and let its pipes go."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            for line in pipe:
                self._lines.put(line)
        self._lines.put(b"")


@contextlib.contextmanager
def rank_processes(
    checkpoint: Path, directory: Path, *, world_size: int = 1, sabotage: str = "", **sections: dict[str, Any]
) -> Iterator[list[RankClient]]:
    """Ranks of one group over a checkpoint; they are gone when the block is left.

    sabotage: Python that the last rank runs first. sections: of the configuration.
    """
    ranks: list[RankClient] = []
    try:
        for rank in range(world_size):
            config = {
                "model": {"path": str(checkpoint), "num_threads": 1, **sections.get("model", {})},
                "cache": {"num_blocks": 64, **sections.get("cache", {})},
                "engine": sections.get("engine", {}),
                "serve": sections.get("serve", {}),
                "traces": sections.get("traces", {}),
                "parallel": {
                    "rank": rank,
                    "world_size": world_size,
                    "rendezvous": f"file://{directory}/rendezvous",
                    **sections.get("parallel", {}),
                },
            }
            last = rank == world_size - 1
            ranks.append(RankClient(config, directory, f"rank-{rank}", sabotage=sabotage if last else ""))
        yield ranks
    finally:
        for client in ranks:
            client.kill()


def submit(rank: RankClient, request_id: str, token_ids: list[int], **sampling: Any) -> None:
    """Send a greedy request that only its length ends, unless `sampling` says otherwise."""
    body = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **sampling}
    rank.send(type="submit", id=request_id, token_ids=token_ids, sampling=body)
