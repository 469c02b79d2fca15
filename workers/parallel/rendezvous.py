"""Where ranks of one epoch find each other: a file or a TCP port that holds who listens where.

Every key carries the epoch, so that ranks of another epoch never meet these.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

# torch.distributed offers the same classes, but without their types.
from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore

from baleen.clock import Clock
from baleen.config import ParallelConfig
from baleen.errors import ConfigError, EpochEnded
from baleen.ids import Incarnation
from workers.parallel.membership import name_ranks
from workers.parallel.mesh import Member

_POLL_S = 0.02


class Rendezvous:
    """The store of one epoch. On rank 0 with tcp:// it also is the server, so it lives as long as the group."""

    def __init__(self, config: ParallelConfig, *, deadline: float, clock: Clock) -> None:
        """Raises ConfigError on an address that cannot be used, EpochEnded when rank 0 does not listen in time."""
        self._config = config
        self._deadline = deadline
        self._clock = clock
        try:
            store = self._open()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"parallel.rendezvous is {config.rendezvous!r}: {reason}") from error
        self.store = PrefixStore(f"baleen/{config.epoch}", store)

    def _open(self) -> Store:
        config = self._config
        if config.rendezvous.startswith("file://"):
            path = Path(config.rendezvous.removeprefix("file://"))
            if not path.parent.is_dir():
                raise ConfigError(f"parallel.rendezvous is {config.rendezvous!r}: {path.parent} is no directory")
            # -1 ranks: the file is the launcher's, and no rank deletes it under another.
            return FileStore(str(path), -1)
        address = urlsplit(config.rendezvous)
        if not address.hostname or not address.port:
            raise ConfigError(f"parallel.rendezvous is {config.rendezvous!r}, must be tcp://host:port")
        if config.rank != 0:
            self._await_listener(address.hostname, address.port)
        timeout = timedelta(seconds=max(1.0, self._remaining_s()))
        return TCPStore(address.hostname, address.port, None, config.rank == 0, timeout=timeout, wait_for_workers=False)

    def _await_listener(self, host: str, port: int) -> None:
        """TCPStore's own retries overrun their timeout and log stack traces; so knock first."""
        while True:
            with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
                return
            if self._remaining_s() <= 0:
                raise EpochEnded(f"rank 0 did not listen at {host}:{port} within {self._config.join_timeout_s:.1f} s")
            time.sleep(_POLL_S)

    def meet(self, own: Member) -> dict[int, Member]:
        """Publish this rank and wait for all others: every member by rank.

        Raises EpochEnded that names the missing ranks, ConfigError when this rank has come before in this epoch.
        """
        try:
            if self.store.add(f"claims/{own.rank}", 1) != 1:
                raise ConfigError(
                    f"parallel.rank {own.rank} has joined epoch {self._config.epoch!r} before: two processes were "
                    "given the same rank, or an epoch is used again"
                )
            self.store.set(self._key(own.rank), json.dumps(asdict(own)))
            ranks = range(self._config.world_size)
            while missing := [rank for rank in ranks if not self.store.check([self._key(rank)])]:
                if self._remaining_s() <= 0:
                    raise EpochEnded(f"{name_ranks(missing)} did not join within {self._config.join_timeout_s:.1f} s")
                time.sleep(_POLL_S)
            return {rank: self._read(rank) for rank in ranks}
        except RuntimeError as error:
            raise EpochEnded(f"the rendezvous {self._config.rendezvous} was lost: {error}") from error

    def _read(self, rank: int) -> Member:
        found = json.loads(self.store.get(self._key(rank)))
        return Member(found["rank"], found["host"], found["port"], Incarnation(found["incarnation"]))

    def _key(self, rank: int) -> str:
        return f"members/{rank}"

    def _remaining_s(self) -> float:
        return self._deadline - self._clock.now()
