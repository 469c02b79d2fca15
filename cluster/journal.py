"""The logs of a cluster over several nodes, kept where `baleen up` runs: an actor there appends what others send."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Send = Callable[[str, bytes], None]
"""Takes the name of a log and text for it; does not wait, and does not fail."""


class Journal:
    """Owns the files; one for each name."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)

    def append(self, name: str, text: bytes) -> None:
        """Add to the log of that name."""
        with (self._directory / f"{name}.log").open("ab") as file:
            file.write(text)


class SentLog:
    """A log that is sent away line by line."""

    def __init__(self, name: str, send: Send) -> None:
        self._name = name
        self._send = send

    def write(self, line: bytes, /) -> int:
        """Send a line."""
        self._send(self._name, line)
        return len(line)
