"""Calls of Ray that need its head. Ray waits for a head that is gone for ever; whoever calls through here does not."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import ParamSpec, TypeVar

from baleen.errors import HeadLost

HEAD_PATIENCE_S = 30.0
"""How long a head may give no answer before it is given up by those who wait for it."""

_LOOK_S = 1.0
_CONNECT_TIMEOUT_S = 3.0

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class HeadCalls:
    """Makes calls, each in a thread of its own, while it watches the head.

    A signal that comes meanwhile is taken once the call has ended, so that no call goes on behind what comes next; a
    second one is taken at once.
    """

    def __init__(self, address: str, answers: Callable[[], bool], *, now: Callable[[], float] = time.monotonic) -> None:
        """address: of the head, for people. answers: whether it is there; returns within seconds."""
        self.address = address
        self._answers = answers
        self._now = now
        self._given_up: list[Future[object]] = []

    @property
    def stuck(self) -> bool:
        """Whether a call that was given up still waits, so that this process can end with os._exit only."""
        return any(not call.done() for call in self._given_up)

    def __call__(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """What the function returns or raises. Raises HeadLost after HEAD_PATIENCE_S without an answer of the head."""
        call: Future[Result] = Future()

        def run() -> None:
            try:
                call.set_result(function(*args, **kwargs))
            except BaseException as error:
                call.set_exception(error)

        # no one waits for a daemon at the end
        Thread(target=run, name=f"head-{function.__name__}", daemon=True).start()
        try:
            self._wait(call)
        except HeadLost:
            raise
        except BaseException:
            self._wait(call)
            raise
        return call.result()

    def _wait(self, call: Future[Result]) -> None:
        silent_since: float | None = None
        while not wait([call], _LOOK_S).done:
            if self._answers():
                silent_since = None
                continue
            now = self._now()
            silent_since = now if silent_since is None else silent_since
            if now - silent_since >= HEAD_PATIENCE_S:
                self._given_up.append(call)  # type: ignore[arg-type]
                raise lost(self.address)


def lost(address: str) -> HeadLost:
    """The error of a head that is given up."""
    return HeadLost(f"Ray's head at {address} has given no answer for {HEAD_PATIENCE_S:g} s")


def listens(address: str) -> bool:
    """Whether anybody listens at `host:port`; what is no such address is taken to be well."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True
