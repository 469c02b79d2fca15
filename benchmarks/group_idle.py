"""What an idle group costs and how fast it wakes: prints one JSON object.

    python benchmarks/group_idle.py [--ep 4] [--seconds 10] [--wakes 200]

cpu_percent_of_a_core: of each rank process, all threads, over the idle time. wake_ms: from `notify` in one rank to
the return of `wait_for_work` in each other rank. agreed_ms: from `notify` to the end of the exchange at every rank.
exchange_us: one exchange after the other, nothing between. all_to_all_us: one empty dispatch and combine (three
collectives), for comparison.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from baleen.config import ParallelConfig
from baleen.ids import new_epoch
from workers.parallel.group import Group
from workers.parallel.guard import EpochGuard
from workers.parallel.join import open_group

BUSY_ROUNDS = 1000
COLLECTIVE_ROUNDS = 100


@dataclass(slots=True)
class RankTimes:
    """What one rank saw. Times are CLOCK_MONOTONIC, which all processes of a machine share."""

    cpu_fraction: float
    rung: dict[int, float]
    woken: list[float]
    agreed: list[float]
    exchange_us: float
    all_to_all_us: float


def idle(group: Group, seconds: float) -> float:
    """CPU seconds per second of this process while nothing happens."""
    end, cpu = time.monotonic() + seconds, time.process_time()
    while (left := end - time.monotonic()) > 0:
        group.wait_for_work(min(1.0, left))
    return (time.process_time() - cpu) / seconds


def rank_process(config: ParallelConfig, seconds: float, wakes: int, results: Connection) -> None:
    """One rank: idle, then be woken by each rank in turn, then exchange without pause."""
    torch.set_num_threads(1)
    guard = EpochGuard(name=f"rank {config.rank}")
    group = open_group(config, guard.epoch_ended)
    group.await_all("start", 60.0)
    cpu_fraction = idle(group, seconds)
    # Nobody may exchange while another still measures.
    group.await_all("measured", 60.0)
    rung: dict[int, float] = {}
    woken, agreed = [], []
    for step in range(wakes):
        if step % config.world_size == config.rank:

            def ring(step: int = step) -> None:
                rung[step] = time.monotonic()
                group.notify()

            # Late enough that all ranks sleep by then.
            threading.Timer(0.02, ring).start()
        while not group.wait_for_work(1.0):
            pass
        woken.append(time.monotonic())
        group.exchange(step, num_tokens=1)
        agreed.append(time.monotonic())
    begin = time.monotonic()
    for step in range(wakes, wakes + BUSY_ROUNDS):
        group.exchange(step, num_tokens=1)
    exchange_us = (time.monotonic() - begin) / BUSY_ROUNDS * 1e6
    experts = group.expert_exchange(8 * config.world_size)
    nothing = torch.empty(0, 64), torch.empty(0, 8, dtype=torch.int64), torch.empty(0, 8)
    begin = time.monotonic()
    for _ in range(COLLECTIVE_ROUNDS):
        received, handle = experts.dispatch(*nothing)
        experts.combine(received.x_RD, handle)
    all_to_all_us = (time.monotonic() - begin) / COLLECTIVE_ROUNDS * 1e6
    results.send(RankTimes(cpu_fraction, rung, woken, agreed, exchange_us, all_to_all_us))
    group.close()


def spread(values: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return {"median": round(statistics.median(ordered), 3), "p99": round(p99, 3), "max": round(ordered[-1], 3)}


def main() -> None:
    """Start the ranks, collect, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ep", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--wakes", type=int, default=200)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    epoch = new_epoch()
    with tempfile.TemporaryDirectory() as directory:
        pipes = [context.Pipe(duplex=False) for _ in range(args.ep)]
        ranks = []
        for rank, (_, sender) in enumerate(pipes):
            config = ParallelConfig(rank=rank, world_size=args.ep, epoch=epoch, rendezvous=f"file://{directory}/meet")
            ranks.append(context.Process(target=rank_process, args=(config, args.seconds, args.wakes, sender)))
            ranks[-1].start()
            sender.close()
        times: list[RankTimes] = [receiver.recv() for receiver, _ in pipes]
        for process in ranks:
            process.join(30)
    rung = {step: at for rank in times for step, at in rank.rung.items()}
    others = [(r, s) for r in range(args.ep) for s in range(args.wakes) if s % args.ep != r]
    everyone = [(r, s) for r in range(args.ep) for s in range(args.wakes)]
    report = {
        "ep": args.ep,
        "cores": os.cpu_count(),
        "idle_seconds": args.seconds,
        "cpu_percent_of_a_core": [round(100 * rank.cpu_fraction, 2) for rank in times],
        "wakes": args.wakes,
        "wake_ms": spread([1e3 * (times[r].woken[s] - rung[s]) for r, s in others]),
        "agreed_ms": spread([1e3 * (times[r].agreed[s] - rung[s]) for r, s in everyone]),
        "exchange_us": round(statistics.mean(rank.exchange_us for rank in times), 1),
        "all_to_all_us": round(statistics.mean(rank.all_to_all_us for rank in times), 1),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
