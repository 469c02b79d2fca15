"""The golden prompts through the whole engine of one rank, under many configurations, with one loading of weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from baleen.clock import SystemClock
from baleen.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, RankConfig
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from tests.support.models import golden_cases
from tests.support.processes import emit
from workers.cache.blocks import BlockCache
from workers.engine.batch import RequestOutput, SampledToken
from workers.engine.scheduler import Scheduler
from workers.engine.submission import expand_submission
from workers.model.checkpoint import Checkpoint
from workers.model.loading import load_weights
from workers.model.runner import COMPUTE_DTYPES, Runner
from workers.model.weights import Weights
from workers.parallel.group import Group
from workers.parallel.join import open_group

DECOY_TOKENS = [3, 17, 5, 99, 41, 8] * 10
"""With one token before them they nearly fill a block, so that decoys soon need another one."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way to run all golden cases of a checkpoint, twice: with a cold cache, then with a warm one.

    together: all cases at once, with sampled requests among them; else one after the other. num_blocks: of the pool.
    """

    name: str
    chunk: int = 2048
    together: bool = True
    num_blocks: int = 64
    attention_form: Any = "auto"
    hadamard: bool = False


SCENARIOS = (
    Scenario("one piece, together"),
    Scenario("chunks of 1, alone", chunk=1, together=False),
    Scenario("chunks of 7", chunk=7),
    Scenario("chunks of 64, alone", chunk=64, together=False),
    Scenario("chunks of 100", chunk=100),
    Scenario("small pool", num_blocks=8, chunk=64),
)


FORM_SCENARIOS = (
    Scenario("one piece, alone", together=False),
    Scenario("chunks of 1", chunk=1),
    Scenario("small pool, chunks of 7", chunk=7, num_blocks=8),
    Scenario("per head", attention_form="mha", chunk=64),
    Scenario("latent, rotated index keys", attention_form="absorbed", hadamard=True, chunk=64),
)


def group_scenarios(golden_name: str, world_size: int) -> Sequence[Scenario]:
    """Of a group of ranks. A step of one request is dear where four ranks meet in it: only the smallest has them."""
    if world_size < 4 or golden_name == "tiny_v32_golden":
        return SCENARIOS
    return [scenario for scenario in SCENARIOS if scenario.together]


@dataclass(slots=True)
class Answer:
    """What came out for one case."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None
    num_cached: int = 0

    def take(self, output: RequestOutput) -> None:
        """Append an output, whose place must follow on what is there."""
        assert self.finish is None and output.position == len(self.token_ids)
        self.token_ids += [token.token_id for token in output.tokens]
        self.logprobs += [_logprob(token) for token in output.tokens]
        self.finish = output.finish.value if output.finish else None
        self.num_cached = output.num_cached_tokens


def _logprob(token: SampledToken) -> float:
    assert token.logprob is not None
    return token.logprob


class GoldenEngine:
    """Scheduler and runner of one rank for one scenario; all ranks of the group run the same scenarios in step."""

    def __init__(self, weights: Weights, group: Group, scenario: Scenario) -> None:
        self._spec = weights.spec
        self._group = group
        self._scenario = scenario
        config = RankConfig(
            model=ModelConfig(path="", attention_form=scenario.attention_form, hadamard=scenario.hadamard),
            cache=CacheConfig(num_blocks=scenario.num_blocks),
            engine=EngineConfig(max_chunk_tokens=scenario.chunk, audit="step"),
        )
        blocks = BlockCache(config.cache.num_blocks, weights.fingerprint)
        self.scheduler = Scheduler(config.engine, blocks, SystemClock(), max_context=4096)
        self._runner = Runner(weights, config, group.expert_exchange(self._spec.num_experts))

    def run(self, cases: Sequence[dict[str, Any]], steps: Iterator[int]) -> list[Answer]:
        """Answers to the cases, in order; `steps` numbers the group's steps."""
        answers = {f"case-{i}": Answer() for i in range(len(cases))}
        if self._scenario.together:
            for i in range(3):
                sampling = SamplingParams(max_tokens=12, temperature=1.0, seed=i, logprobs=0, ignore_eos=True)
                self._submit_one(f"decoy-{i}", [i + 2, *DECOY_TOKENS], sampling)
            self._submit(cases, range(len(cases)))
            self._finish(answers, steps)
        else:
            for i in range(len(cases)):
                self._submit(cases, [i])
                self._finish(answers, steps)
        return list(answers.values())

    def _submit(self, cases: Sequence[dict[str, Any]], which: Sequence[int]) -> None:
        for i in which:
            count = len(cases[i]["greedy"])
            minimum = 0 if cases[i]["ignore_eos"] else count
            sampling = SamplingParams(
                max_tokens=count,
                min_tokens=minimum,
                ignore_eos=cases[i]["ignore_eos"],
                temperature=0.0,
                logprobs=0,
            )
            self._submit_one(f"case-{i}", cases[i]["prompt"], sampling)

    def _submit_one(self, name: str, prompt: list[int], sampling: SamplingParams) -> None:
        requests = expand_submission(
            RequestId(name),
            prompt,
            sampling,
            vocab_size=self._spec.vocab_size,
            eos_token_ids=self._spec.eos_token_ids,
        )
        self.scheduler.submit_all(requests)

    def _finish(self, answers: dict[str, Answer], steps: Iterator[int]) -> None:
        """Step with the group until no rank has work."""
        while True:
            batch = self.scheduler.schedule()
            agreement = self._group.exchange(next(steps), batch.num_tokens if batch else 0)
            if agreement.all_idle:
                break
            result = self._runner.run(batch)
            if batch is not None:
                self.scheduler.commit(batch, result)
            for output in self.scheduler.take_outputs():
                if output.request_id in answers:
                    answers[output.request_id].take(output)
        self.scheduler.check()


def run_golden_scenarios(
    weights: Weights, group: Group, golden_name: str, scenarios: Sequence[Scenario]
) -> Iterator[dict[str, Any]]:
    """Every scenario, cold and warm: its name, the answers of both rounds, and how many requests were preempted."""
    cases = golden_cases(golden_name)
    steps = iter(range(1_000_000))
    for scenario in scenarios:
        engine = GoldenEngine(weights, group, scenario)
        rounds = [engine.run(cases, steps) for _ in range(2)]
        yield {
            "scenario": scenario.name,
            "rounds": [
                [
                    {"token_ids": a.token_ids, "logprobs": a.logprobs, "finish": a.finish, "cached": a.num_cached}
                    for a in answers
                ]
                for answers in rounds
            ],
            "preemptions": engine.scheduler.tallies.preemptions,
        }


def golden_rank(parallel: ParallelConfig, directory: str, golden_name: str) -> None:
    """A rank process that runs all scenarios with its group and emits one event for each."""
    group = open_group(parallel, lambda cause: None)
    with Checkpoint.open(directory) as checkpoint:
        weights, _ = load_weights(
            checkpoint,
            rank=parallel.rank,
            world_size=parallel.world_size,
            compute_dtype=COMPUTE_DTYPES["float32"],
            progress=False,
        )
    group.await_all("loaded", 120.0)
    for event in run_golden_scenarios(weights, group, golden_name, group_scenarios(golden_name, parallel.world_size)):
        emit(event)
    # all have finished their last step before any leaves
    group.await_all("done", 120.0)
    group.close()
