"""Toy rank programs: a step loop without a model, and a puppet that does what the test tells it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from baleen.config import ParallelConfig
from baleen.errors import BaleenError, EpochEnded
from baleen.ids import new_epoch
from tests.support.processes import Child, Nursery, emit
from workers.parallel.dispatch import ExpertExchange
from workers.parallel.group import Group
from workers.parallel.guard import EpochGuard
from workers.parallel.join import open_group

NUM_EXPERTS = 8
HIDDEN_SIZE = 16
EXPERTS_PER_TOKEN = 2


def group_config(directory: Path, world_size: int, **changes: Any) -> ParallelConfig:
    """Rank 0 of a fresh epoch that meets in a file of `directory`."""
    epoch = new_epoch()
    config = ParallelConfig(world_size=world_size, epoch=epoch, rendezvous=f"file://{directory}/meet-{epoch}")
    return replace(config, **changes)


def start_group(
    children: Nursery, config: ParallelConfig, program: Callable[..., None], *args: Any, skip: Sequence[int] = ()
) -> list[Child]:
    """One process for each rank (but those to skip) that runs `program(config of the rank, *args)`."""
    ranks = [rank for rank in range(config.world_size) if rank not in skip]
    return [children.fork(f"rank {rank}", program, replace(config, rank=rank), *args) for rank in ranks]


class Record:
    """Steps that a rank has completed and emitted, in a file that outlives the process however it ends."""

    _FORMAT = struct.Struct("<qq")

    def __init__(self, directory: Path, rank: int) -> None:
        self._file = os.open(directory / f"record-{rank}", os.O_RDWR | os.O_CREAT, 0o600)

    def write(self, *, completed: int, emitted: int) -> None:
        """Last step completed and last step emitted; -1 for none."""
        os.pwrite(self._file, self._FORMAT.pack(completed, emitted), 0)

    @classmethod
    def read(cls, directory: Path, rank: int) -> tuple[int, int]:
        """What the rank of `directory` wrote last."""
        completed, emitted = cls._FORMAT.unpack((directory / f"record-{rank}").read_bytes())
        return completed, emitted


def toy_layer(
    exchange: ExpertExchange, rank: int, step: int, num_tokens: int, between: Callable[[], None] = lambda: None
) -> None:
    """One MoE layer whose expert e multiplies by e + 1; asserts that the answer is right.

    between: called after dispatch, when the other ranks are in combine or about to be.
    """
    generator = torch.Generator().manual_seed(1000 * rank + step)
    x_TD = torch.randn(num_tokens, HIDDEN_SIZE, generator=generator)
    ids_TK = torch.randint(0, NUM_EXPERTS, (num_tokens, EXPERTS_PER_TOKEN), generator=generator)
    weights_TK = torch.rand(num_tokens, EXPERTS_PER_TOKEN, generator=generator)
    received, handle = exchange.dispatch(x_TD, ids_TK, weights_TK)
    factors_R = torch.tensor([e + 1.0 for e in exchange.local_experts]).repeat_interleave(torch.tensor(received.counts))
    between()
    out_TD = exchange.combine(received.x_RD * factors_R[:, None], handle)
    expected_TD = x_TD * (weights_TK * (ids_TK + 1)).sum(1, keepdim=True)
    assert torch.allclose(out_TD, expected_TD, rtol=1e-5, atol=1e-5)


@dataclass(frozen=True, slots=True)
class Fault:
    """What `rank` does to itself inside the layer of `step`: sends `signal`, or hangs if that is 0."""

    rank: int
    step: int
    signal: int

    def strike(self) -> None:
        """Say when, then do it."""
        emit({"fault": time.monotonic()})
        if self.signal:
            os.kill(os.getpid(), self.signal)
        else:
            threading.Event().wait()


@dataclass(slots=True)
class StepLoop:
    """A rank without a model. `busy`: every step has tokens; otherwise steps run on SIGUSR1 only."""

    group: Group
    record: Record
    busy: bool
    fault: Fault | None = None
    pending: int = 0
    draining: bool = False

    def run(self) -> None:
        """Steps until all ranks drain."""
        exchange = self.group.expert_exchange(NUM_EXPERTS)
        completed = -1
        step = 0
        while True:
            num_tokens = 0 if self.draining else 3 if self.busy else min(self.pending, 1)
            agreement = self.group.exchange(step, num_tokens, draining=self.draining)
            self.group.check()
            self.record.write(completed=completed, emitted=completed)
            self.draining |= agreement.any_draining
            if agreement.may_leave:
                return
            if agreement.all_idle:
                if not self.draining:
                    emit({"idle": step})
                    while not self.group.wait_for_work(1.0):
                        pass
            else:
                self.group.report("run")
                toy_layer(exchange, self.group.rank, step, num_tokens, lambda step=step: self._maybe_strike(step))
                self.pending -= min(num_tokens, self.pending)
                completed_before, completed = completed, step
                self.record.write(completed=completed, emitted=completed_before)
                if step == 20:
                    emit({"busy": step})
            step += 1

    def _maybe_strike(self, step: int) -> None:
        if self.fault is not None and (self.fault.rank, self.fault.step) == (self.group.rank, step):
            self.fault.strike()


def step_loop(config: ParallelConfig, directory: str, busy: bool, fault: Fault | None = None) -> None:
    """The rank process: SIGUSR1 gives it one token to compute, SIGTERM makes it drain."""
    torch.set_num_threads(1)
    record = Record(Path(directory), config.rank)
    record.write(completed=-1, emitted=-1)
    guard = EpochGuard(name=f"rank {config.rank}")
    try:
        group = open_group(config, guard.epoch_ended)
        loop = StepLoop(group, record, busy, fault)

        def on_signal(number: int, _: object) -> None:
            loop.pending += number == signal.SIGUSR1
            loop.draining |= number == signal.SIGTERM
            group.notify()

        signal.signal(signal.SIGUSR1, on_signal)
        signal.signal(signal.SIGTERM, on_signal)
        emit("joined")
        loop.run()
        group.close()
    except EpochEnded as error:
        guard.leave(error.cause)
    except BaleenError as error:
        sys.stderr.write(f"rank {config.rank}: {error}\n")
        sys.exit(error.exit_code)


@dataclass(slots=True)
class Strings:
    """What a puppet's functions may use."""

    config: ParallelConfig
    group: Group
    causes: list[str]
    kept: dict[str, Any]


def puppet(config: ParallelConfig, commands: Connection) -> None:
    """Join, then run each (function, args) that arrives as function(Strings, *args) and send back what it returns."""
    torch.set_num_threads(1)
    causes: list[str] = []
    strings = Strings(config, open_group(config, causes.append), causes, {})
    commands.send(("ok", None))
    while (order := commands.recv()) is not None:
        function, args = order
        try:
            commands.send(("ok", function(strings, *args)))
        except EpochEnded as error:
            commands.send(("ended", error.cause))
    strings.group.close()


class Puppets:
    """The test's end of a group of puppets."""

    def __init__(self, children: Nursery, config: ParallelConfig) -> None:
        pipes = [multiprocessing.Pipe() for _ in range(config.world_size)]
        self._pipes = [ours for ours, _ in pipes]
        self.children = [
            children.fork(f"puppet {rank}", puppet, replace(config, rank=rank), theirs)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for _, theirs in pipes:
            theirs.close()
        for rank in range(config.world_size):
            assert self.result(rank) == ("ok", None)

    def tell(self, rank: int, function: Callable[..., Any], *args: Any) -> None:
        """Make one rank run a function of a module; its result waits for `result`."""
        self._pipes[rank].send((function, args))

    def result(self, rank: int, timeout_s: float = 60.0) -> tuple[str, Any]:
        """("ok", what the function returned) or ("ended", the cause of EpochEnded)."""
        assert self._pipes[rank].poll(timeout_s), f"no result: {self.children[rank].errors()[-3000:]}"
        try:
            status, value = self._pipes[rank].recv()
        except EOFError:
            raise AssertionError(f"rank {rank} ended: {self.children[rank].errors()[-3000:]}") from None
        return status, value

    def each(self, function: Callable[..., Any], args: Mapping[int, Sequence[Any]]) -> dict[int, Any]:
        """Run a function on the ranks of `args` at the same time; all must succeed."""
        for rank, values in args.items():
            self.tell(rank, function, *values)
        results = {rank: self.result(rank) for rank in args}
        assert all(status == "ok" for status, _ in results.values()), results
        return {rank: value for rank, (_, value) in results.items()}

    def all(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Run a function with the same arguments on all ranks at the same time; all must succeed."""
        results = self.each(function, dict.fromkeys(range(len(self._pipes)), args))
        return [results[rank] for rank in range(len(self._pipes))]

    def all_but(self, rank: int, function: Callable[..., Any], *args: Any) -> None:
        """Run a function with the same arguments on all other ranks at the same time; all must succeed."""
        self.each(function, {other: args for other in range(len(self._pipes)) if other != rank})

    def ready(self, rank: int, timeout_s: float) -> bool:
        """Whether a result of `rank` is there, or comes within the time."""
        return self._pipes[rank].poll(timeout_s)

    def close(self) -> None:
        """Let them leave in order."""
        for pipe in self._pipes:
            pipe.send(None)


def main() -> None:
    """`python -m tests.support.group_programs CONFIG_JSON DIRECTORY BUSY`: the step loop as a program of its own."""
    config = ParallelConfig(**json.loads(sys.argv[1]))
    step_loop(config, sys.argv[2], sys.argv[3] == "busy")


if __name__ == "__main__":
    main()
