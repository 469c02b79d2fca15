"""A group of four real ranks loses one, killed or stopped, while it prefills and while it decodes."""

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass

import pytest

from tests.support.golden import golden
from tests.support.models import make_golden_checkpoint
from tests.support.processes import Child, Nursery, nursery, wait_all

pytestmark = pytest.mark.slow

WORLD_SIZE = 4
TINY = "tiny_v32_golden"
END_WITHIN_S = 5.0
"""From the signal to the exit of every survivor."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_golden_checkpoint(TINY, tmp_path_factory.mktemp("model") / "tiny")


def rank_with_fifo(config: str, commands: str) -> None:
    """A rank process whose standard input is a named pipe."""
    os.dup2(os.open(commands, os.O_RDONLY), 0)
    from workers.main import main

    main(["--config", config])


class Group:
    """Four ranks that take requests."""

    def __init__(self, children: Nursery, checkpoint, directory) -> None:
        self.ranks: list[Child] = []
        self._commands = []
        for rank in range(WORLD_SIZE):
            config = {
                "model": {"path": str(checkpoint), "num_threads": 1},
                "cache": {"num_blocks": 64},
                "engine": {"max_chunk_tokens": 1},
                "parallel": {
                    "rank": rank,
                    "world_size": WORLD_SIZE,
                    "epoch": directory.name,
                    "rendezvous": f"file://{directory}/rendezvous",
                },
            }
            path, fifo = directory / f"rank-{rank}.json", directory / f"rank-{rank}.commands"
            path.write_text(json.dumps(config))
            os.mkfifo(fifo)
            self.ranks.append(children.fork(f"rank {rank}", rank_with_fifo, str(path), str(fifo)))
            self._commands.append(os.open(fifo, os.O_WRONLY))
        for rank in self.ranks:
            assert rank.event(timeout_s=60.0)["type"] == "ready"

    def submit(self, rank: int, prompt: list[int], max_tokens: int) -> None:
        sampling = {"max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
        line = json.dumps({"type": "submit", "id": f"r{rank}", "token_ids": prompt, "sampling": sampling})
        os.write(self._commands[rank], line.encode() + b"\n")

    def close(self) -> None:
        for descriptor in self._commands:
            os.close(descriptor)


def await_prefill(rank: Child) -> list[int]:
    """Wait until the rank reports that its prompt is being computed."""
    while True:
        event = rank.event()
        assert not event.get("outputs"), "the prompt is long enough not to end yet"
        if event["type"] == "step" and event["load"]["num_running"]:
            return []


def await_decode(rank: Child) -> list[int]:
    """Wait for three tokens, and return them."""
    tokens: list[int] = []
    while len(tokens) < 3:
        tokens += tokens_of(rank.event())
    return tokens


def tokens_of(event: dict) -> list[int]:
    return [token for output in event.get("outputs", ()) for token in output["token_ids"]]


def remaining_events(rank: Child) -> list[dict]:
    """Events up to the last one, which says why the rank ended."""
    events = [rank.event()]
    while events[-1]["type"] != "ended":
        events.append(rank.event())
    return events


@dataclass
class Loss:
    """A group that loses a rank at `begin`; delivered: the tokens of each rank's request so far."""

    group: Group
    victim: int
    begin: float
    delivered: list[list[int]]


def lose(group: Group, victim: int, number: signal.Signals, *, prefill: bool) -> Loss:
    """Give every rank of a group something to do, and strike one."""
    expected = golden(TINY)["prompt"]
    for rank in range(WORLD_SIZE):
        group.submit(rank, expected * 50 if prefill else expected, max_tokens=1500)
    delivered = [await_prefill(rank) if prefill else await_decode(rank) for rank in group.ranks]
    begin = time.monotonic()
    group.ranks[victim].send(number)
    return Loss(group, victim, begin, delivered)


def check_survivors(loss: Loss, *, prefill: bool) -> None:
    """They ended in time, named the victim, and gave no token that is not true."""
    survivors = [rank for place, rank in enumerate(loss.group.ranks) if place != loss.victim]
    for place, rank in enumerate(loss.group.ranks):
        if place == loss.victim:
            continue
        events = remaining_events(rank)
        assert f"rank {loss.victim}" in events[-1]["cause"]
        loss.delivered[place] += [token for event in events for token in tokens_of(event)]
    wait_all(survivors, 30.0)
    for rank in survivors:
        assert rank.code == 75
        assert rank.exited_at is not None and rank.exited_at - loss.begin <= END_WITHIN_S
        assert f"rank {loss.victim}" in rank.errors().splitlines()[-1]
    if prefill:
        assert loss.delivered == [[]] * WORLD_SIZE
        return
    expected = golden(TINY)["greedy_24"]
    for tokens in loss.delivered:
        compared = min(len(tokens), len(expected))
        assert tokens[:compared] == expected[:compared]


@pytest.mark.parametrize("victims", [(0, 3), (1, 2)], ids=["0 and 3", "1 and 2"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_survivors_end_in_time_with_the_cause_and_only_true_tokens(checkpoint, tmp_path, phase, number, victims):
    """Two groups side by side, since to find out that a rank is silent takes seconds in which nothing is done."""
    with contextlib.ExitStack() as stack:
        groups = []
        for victim in victims:
            directory = tmp_path / f"victim-{victim}"
            directory.mkdir()
            groups.append(Group(stack.enter_context(nursery(directory)), checkpoint, directory))
            stack.callback(groups[-1].close)
        prefill = phase == "prefill"
        losses = [lose(group, victim, number, prefill=prefill) for group, victim in zip(groups, victims, strict=True)]
        for loss in losses:
            check_survivors(loss, prefill=prefill)
