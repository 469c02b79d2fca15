"""Routing policies side by side on a simulated cluster: hit rate and time to first token of a multi-turn workload.

usage: python -m benchmarks.routing [--conversations 600] [--seed 1] [--per-second 4]

The policies are the router's own, on the snapshots that the simulated ranks give. A rank computes prompts one after
the other at a fixed speed, decodes all its requests together at a fixed speed in all, and keeps prefixes until its
blocks run out, the least recently used first. The index is taken to be right and at hand. Conversations begin at
random moments with one of a few system prompts, some more popular than others; each turn repeats what was said, adds
a question, and waits for the reader. Same seed, same workload for every policy. hit_rate: prompt tokens that the rank
which had to compute them held already. busiest: the largest share of all requests that one rank decoded, and what an
equal share would be.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from baleen.blocks import BLOCK_TOKENS, blocks_for, shareable_blocks
from baleen.cluster_config import PolicyName
from baleen.config import Role
from baleen.ids import Incarnation
from router.policy.registry import POLICIES
from router.policy.snapshot import Parameters, Policy, Query, RankView, Snapshot

PREFILL_TOKENS_PER_S = 8000.0
DECODE_TOKENS_PER_S = 1200.0
NUM_BLOCKS = 2500
MAX_RUNNING = 64
SYSTEM_PROMPTS = 12
SYSTEM_TOKENS = 1536
THINKING_S = 8.0
LAYOUTS: dict[str, dict[Role, int]] = {"8 mixed": {"mixed": 8}, "3 prefill, 5 decode": {"prefill": 3, "decode": 5}}
DEFAULT_RATE = 4.0

PARAMETERS = Parameters()


@dataclass(frozen=True, slots=True)
class Turn:
    """One request. prompt: tokens, the whole conversation so far; `remaining` turns follow."""

    conversation: int
    system: int
    prompt: int
    output: int
    remaining: int

    def names(self) -> list[tuple[str, int]]:
        """Under which prefixes may be kept: the conversation's own, or that of its system prompt."""
        return [("conversation", self.conversation), ("system", self.system)]


@dataclass(slots=True, eq=False)
class SimulatedRank:
    """One rank: when its prompts will all be computed, what it decodes, and which prefixes it holds."""

    incarnation: Incarnation
    role: Role
    idle_at: float = 0.0
    running: int = 0
    held_blocks: int = 0
    decoded: int = 0
    prefixes: OrderedDict[tuple[str, int], int] = field(default_factory=OrderedDict)

    def cached(self, turn: Turn) -> int:
        """Leading blocks of the turn's prompt that are here."""
        conversation, system = (self.prefixes.get(name, 0) for name in turn.names())
        return min(shareable_blocks(turn.prompt), max(conversation, min(system, SYSTEM_TOKENS // BLOCK_TOKENS)))

    def keep(self, turn: Turn, num_tokens: int) -> None:
        """Hold the first tokens of the turn's conversation; what was not used for longest makes room."""
        for name, tokens in zip(turn.names(), (num_tokens, min(num_tokens, SYSTEM_TOKENS)), strict=True):
            self.prefixes[name] = max(self.prefixes.get(name, 0), tokens // BLOCK_TOKENS)
            self.prefixes.move_to_end(name)
        while sum(self.prefixes.values()) + self.held_blocks > NUM_BLOCKS and len(self.prefixes) > 1:
            self.prefixes.popitem(last=False)

    def compute(self, now: float, num_tokens: int) -> float:
        """When so many prompt tokens, behind all others, are computed."""
        self.idle_at = max(self.idle_at, now) + num_tokens / PREFILL_TOKENS_PER_S
        return self.idle_at

    def view(self, now: float) -> RankView:
        """What a router sees."""
        return RankView(
            incarnation=self.incarnation,
            pool=self.role,
            group=self.incarnation,
            role=self.role,
            address="",
            total_blocks=NUM_BLOCKS,
            max_running=MAX_RUNNING,
            free_blocks=NUM_BLOCKS - self.held_blocks,
            num_running=self.running,
            queued_tokens=round(max(0.0, self.idle_at - now) * PREFILL_TOKENS_PER_S),
            prefill_tokens_per_s=PREFILL_TOKENS_PER_S,
            decode_tokens_per_s=DECODE_TOKENS_PER_S,
        )


class Simulation:
    """A cluster, one policy, and the events to come."""

    def __init__(self, layout: dict[Role, int], policy: Policy, turns: list[tuple[float, Turn]]) -> None:
        self.ranks = {
            name: SimulatedRank(name, role)
            for role, number in layout.items()
            for name in (Incarnation(f"{role}{place}") for place in range(number))
        }
        self.policy = policy
        self.order = count()
        self.arrivals = count()
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.waits: list[float] = []
        self.prompt_tokens = self.cached_tokens = 0
        for at, turn in turns:
            self.at(at, partial(self.arrive, turn))

    def at(self, time: float, event: Callable[[float], None]) -> None:
        """Let `event` happen."""
        heapq.heappush(self.events, (time, next(self.order), event))

    def run(self) -> None:
        """Until nothing happens any more."""
        while self.events:
            time, _, event = heapq.heappop(self.events)
            event(time)

    def arrive(self, turn: Turn, now: float) -> None:
        """A request comes: the policy chooses, the first rank begins."""
        query = Query(
            request_id=str(len(self.waits)),
            num_prompt_tokens=turn.prompt,
            max_tokens=turn.output,
            cached_blocks={name: rank.cached(turn) for name, rank in self.ranks.items()},
            seed=turn.conversation * 1000 + turn.remaining,
            turn=next(self.arrivals),
        )
        decision = self.policy(Snapshot(tuple(rank.view(now) for rank in self.ranks.values())), query, PARAMETERS)
        decode = self.ranks[decision.decode]
        decode.held_blocks += blocks_for(turn.prompt + turn.output)
        decode.running += 1
        decode.decoded += 1
        fetch = decision.fetch
        fetched, fetch_s = (fetch.num_fetched, fetch.compute_s - fetch.gain_s) if fetch is not None else (0, 0.0)
        if decision.prefill is None:
            missing = self.missing(turn, decode, fetched)
            self.at(now + fetch_s, partial(self.generate, turn, now, decode, missing))
            return
        prefill = self.ranks[decision.prefill]
        shared = shareable_blocks(turn.prompt)
        moved = shared - decode.cached(turn)
        missing = self.missing(turn, prefill, fetched) - (turn.prompt - shared * BLOCK_TOKENS)
        done = prefill.compute(now + fetch_s, missing)
        prefill.keep(turn, shared * BLOCK_TOKENS)
        transfer_s = PARAMETERS.handoff_s + moved * PARAMETERS.block_bytes / PARAMETERS.transfer_bytes_per_s
        tail = turn.prompt - shared * BLOCK_TOKENS
        self.at(done + transfer_s, partial(self.generate, turn, now, decode, tail))

    def missing(self, turn: Turn, rank: SimulatedRank, fetched: int) -> int:
        """Prompt tokens that the rank must compute, after so many blocks were fetched; counted for the hit rate."""
        cached = (rank.cached(turn) + fetched) * BLOCK_TOKENS
        self.prompt_tokens += turn.prompt
        self.cached_tokens += cached
        return turn.prompt - cached

    def generate(self, turn: Turn, came: float, rank: SimulatedRank, num_tokens: int, now: float) -> None:
        """The decode rank computes what is left of the prompt, then all of the output."""
        first = rank.compute(now, num_tokens)
        self.waits.append(first - came)
        self.at(first + turn.output * rank.running / DECODE_TOKENS_PER_S, partial(self.finish, turn, rank))

    def finish(self, turn: Turn, rank: SimulatedRank, now: float) -> None:
        """The request ends; its blocks stay as a prefix, and the reader thinks."""
        rank.running -= 1
        rank.held_blocks -= blocks_for(turn.prompt + turn.output)
        rank.keep(turn, turn.prompt + turn.output - 1)
        if turn.remaining:
            chance = random.Random(turn.conversation * 1000 + turn.remaining)
            following = Turn(
                turn.conversation,
                turn.system,
                turn.prompt + turn.output + question_tokens(chance),
                answer_tokens(chance),
                turn.remaining - 1,
            )
            self.at(now + chance.expovariate(1 / THINKING_S), partial(self.arrive, following))


def question_tokens(chance: random.Random) -> int:
    """Length of what a reader adds; a few paste a document."""
    return round(min(6000.0, chance.lognormvariate(4.8, 1.2))) + 1


def answer_tokens(chance: random.Random) -> int:
    """Length of an answer."""
    return round(min(1000.0, chance.lognormvariate(5.0, 0.6))) + 1


def workload(conversations: int, per_second: float, seed: int) -> list[tuple[float, Turn]]:
    """First turns, with the moments at which they come."""
    chance = random.Random(seed)
    popularity = [1 / (place + 1) for place in range(SYSTEM_PROMPTS)]
    now, turns = 0.0, []
    for conversation in range(conversations):
        now += chance.expovariate(per_second)
        [system] = chance.choices(range(SYSTEM_PROMPTS), popularity)
        prompt = SYSTEM_TOKENS + question_tokens(chance)
        turns.append((now, Turn(conversation, system, prompt, answer_tokens(chance), chance.randrange(10))))
    return turns


def simulate(layout: dict[Role, int], policy: PolicyName, turns: list[tuple[float, Turn]]) -> dict[str, Any]:
    """One policy on one layout."""
    simulation = Simulation(layout, POLICIES[policy], turns)
    simulation.run()
    waits = sorted(simulation.waits)
    decoded = [rank.decoded for rank in simulation.ranks.values() if rank.role != "prefill"]
    return {
        "policy": policy,
        "requests": len(waits),
        "hit_rate": round(simulation.cached_tokens / simulation.prompt_tokens, 3),
        "first_token_ms_mean": round(1e3 * statistics.mean(waits), 1),
        "first_token_ms_median": round(1e3 * statistics.median(waits), 1),
        "first_token_ms_p99": round(1e3 * waits[round(0.99 * (len(waits) - 1))], 1),
        "busiest": [round(max(decoded) / len(waits), 3), round(1 / len(decoded), 3)],
    }


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=600)
    parser.add_argument("--per-second", type=float, default=DEFAULT_RATE, help="conversations that begin")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    turns = workload(args.conversations, args.per_second, args.seed)
    report = {name: [simulate(layout, policy, turns) for policy in POLICIES] for name, layout in LAYOUTS.items()}
    print(json.dumps({"conversations": args.conversations, "per_second": args.per_second, **report}, indent=1))


if __name__ == "__main__":
    main()
