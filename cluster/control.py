"""How another command asks a running `baleen up` for something: a socket in the cluster's own folder.

One request at a time, as one line of JSON; the answer is lines as well: what is being done, and last how it ended.
Whoever may enter the folder, which is the user alone, may ask.
"""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from baleen.errors import BaleenError, CheckpointError, ConfigError

MOST_BYTES = 1 << 20
"""Longest request."""

READ_TIMEOUT_S = 5.0
"""A request comes whole at once, or is dropped."""

_KINDS: dict[str, type[BaleenError]] = {kind.__name__: kind for kind in (ConfigError, CheckpointError)}


def control_path(directory: Path) -> Path:
    """Where the socket of a cluster lies."""
    return directory / "control"


class Request:
    """What was asked, and the way back to whoever did. Should they have gone, nobody minds."""

    def __init__(self, connection: socket.socket, content: dict[str, Any]) -> None:
        self._connection = connection
        self.content = content

    def say(self, text: str) -> None:
        """What is being done, for people."""
        self._send({"said": text})

    def end(self, error: BaleenError | None = None) -> None:
        """The last line."""
        self._send({"ended": ""} if error is None else {"ended": str(error), "kind": type(error).__name__})
        self._connection.close()

    def _send(self, line: dict[str, str]) -> None:
        try:
            self._connection.sendall(json.dumps(line).encode() + b"\n")
        except OSError:
            self._connection.close()


class Control:
    """The listening end; a context manager. One thread uses it."""

    def __init__(self, directory: Path) -> None:
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._server.bind(str(control_path(directory)))
        self._server.listen()

    def wait(self, timeout_s: float) -> Request | None:
        """The next request; None if none comes in time."""
        if not select.select([self._server], [], [], timeout_s)[0]:
            return None
        connection, _ = self._server.accept()
        connection.settimeout(READ_TIMEOUT_S)
        try:
            with connection.makefile("rb") as lines:
                content = json.loads(lines.readline(MOST_BYTES))
            if not isinstance(content, dict):
                raise ValueError("not an object")
        except (OSError, ValueError) as error:
            Request(connection, {}).end(BaleenError(f"the request cannot be read: {error}"))
            return None
        return Request(connection, content)

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()


def ask(directory: Path, content: dict[str, Any], say: Callable[[str], None]) -> None:
    """Ask the cluster of that folder, and wait for the end; `say` gets what is being done.

    Raises the error that it ended with, BaleenError if the cluster ends first or cannot be asked.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(control_path(directory)))
            connection.sendall(json.dumps(content).encode() + b"\n")
        except OSError as error:
            raise BaleenError(f"the cluster cannot be asked ({control_path(directory)}): {error.strerror}") from error
        with connection.makefile("rb") as lines:
            for line in lines:
                answer = json.loads(line)
                if "said" in answer:
                    say(answer["said"])
                elif answer["ended"]:
                    raise _KINDS.get(answer.get("kind", ""), BaleenError)(answer["ended"])
                else:
                    return
    raise BaleenError("the cluster ended before it had done this")
