"""Which gateways of this machine live: each holds a lock on a file of its own, which ends with its process."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path


class Living:
    """This process among those that use one database. No clock: a stopped process lives, a dead one does not."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self.name = secrets.token_hex(8)
        self._descriptor = os.open(self._path(self.name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def is_dead(self, name: str) -> bool:
        """Whether the gateway of that name has ended."""
        if name == self.name:
            return False
        try:
            descriptor = os.open(self._path(name), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def forget(self, name: str) -> None:
        """Take away the file of a dead one."""
        self._path(name).unlink(missing_ok=True)

    def close(self) -> None:
        """Say that this one has ended."""
        self.forget(self.name)
        os.close(self._descriptor)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.lock"
