"""A group of four real ranks loses one, killed or stopped, while it prefills and while it decodes."""

import json
import os
import signal
import time

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


@pytest.mark.parametrize("victim", range(WORLD_SIZE))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_survivors_end_in_time_with_the_cause_and_only_true_tokens(checkpoint, tmp_path, phase, number, victim):
    expected = golden(TINY)
    with nursery(tmp_path) as children:
        group = Group(children, checkpoint, tmp_path)
        delivered = []
        for rank in range(WORLD_SIZE):
            prompt = expected["prompt"] * 50 if phase == "prefill" else expected["prompt"]
            group.submit(rank, prompt, max_tokens=1500)
        for rank in group.ranks:
            delivered.append(await_prefill(rank) if phase == "prefill" else await_decode(rank))
        survivors = [rank for place, rank in enumerate(group.ranks) if place != victim]
        begin = time.monotonic()
        group.ranks[victim].send(number)
        for place, rank in enumerate(group.ranks):
            if place == victim:
                continue
            events = remaining_events(rank)
            assert f"rank {victim}" in events[-1]["cause"]
            delivered[place] += [token for event in events for token in tokens_of(event)]
        wait_all(survivors, 30.0)
        for rank in survivors:
            assert rank.code == 75
            assert rank.exited_at is not None and rank.exited_at - begin <= END_WITHIN_S
            assert f"rank {victim}" in rank.errors().splitlines()[-1]
        if phase == "decode":
            for tokens in delivered:
                compared = min(len(tokens), len(expected["greedy_24"]))
                assert tokens[:compared] == expected["greedy_24"][:compared]
        else:
            assert delivered == [[]] * WORLD_SIZE
        group.close()
