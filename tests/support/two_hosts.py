"""Two machines on one: this network namespace and another one, joined by a cable that can be cut."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from types import TracebackType

from tests.support.namespace import processes_here

HERE, THERE = "10.77.0.1", "10.77.0.2"
"""Their addresses. That of this one is a bridge's, so that it stays when the cable is cut."""


class TwoHosts:
    """A context manager; this process must be root in a network namespace of its own. Kills all on both at its end."""

    def __enter__(self) -> TwoHosts:
        own = os.readlink("/proc/self/ns/net")
        # cat ends with its input, and so with this process
        self._other = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._other.stdout is not None
        self._other.stdout.readline()
        assert os.readlink(f"/proc/{self._other.pid}/ns/net") != own
        for words in (
            ("link", "add", "hosts", "type", "bridge"),
            ("addr", "add", f"{HERE}/24", "dev", "hosts"),
            ("link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(self._other.pid)),
            ("link", "set", "near", "master", "hosts"),
            ("link", "set", "hosts", "up"),
            ("link", "set", "near", "up"),
        ):
            _ip(words)
        for words in (
            ("addr", "add", f"{THERE}/24", "dev", "far"),
            ("link", "set", "far", "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip(words, self.there([]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # the last to go is the one that the namespace is known by
        for pid, _ in [*processes_here(), *processes_here(self._other.pid)]:
            if pid != self._other.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._other.kill()
        self._other.wait()

    def there(self, command: Sequence[str]) -> list[str]:
        """The command that runs `command` on the other host."""
        return ["nsenter", "--target", str(self._other.pid), "--net", *command]

    def cut(self) -> None:
        """From now on nothing gets through, and nobody is told."""
        _ip(("link", "set", "near", "down"))

    def mend(self) -> None:
        """Join them again."""
        _ip(("link", "set", "near", "up"))


def _ip(words: Sequence[str], before: Sequence[str] = ()) -> None:
    subprocess.run([*before, "ip", *words], check=True, timeout=20, stdin=subprocess.DEVNULL)
