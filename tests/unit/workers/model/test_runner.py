"""The runner: block tables that follow the requests, and requests that fail alone."""

import numpy as np

from baleen.clock import SystemClock
from baleen.config import CacheConfig, EngineConfig, ModelConfig, RankConfig
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from tests.support.golden import golden
from workers.cache.blocks import BlockCache
from workers.engine.batch import FinishReason
from workers.engine.scheduler import Scheduler
from workers.engine.submission import expand_submission
from workers.model.runner import BlockTables, Runner
from workers.parallel.local import LocalExchange

TINY = "tiny_v32_golden"


class Bans:
    """A token mask that allows nothing."""

    problem = "the grammar ends in a wall"
    binds = True

    def fill(self, bitmask):
        bitmask[:] = 0

    def accept(self, token_id):
        raise AssertionError("nothing was allowed")


def run_to_end(scheduler: Scheduler, runner: Runner) -> dict:
    """Tokens, finish and detail of every request."""
    answers: dict = {}
    while (batch := scheduler.schedule()) is not None:
        scheduler.commit(batch, runner.run(batch))
        for output in scheduler.take_outputs():
            tokens, _, _ = answers.get(output.request_id, ([], None, ""))
            answers[output.request_id] = (
                tokens + [token.token_id for token in output.tokens],
                output.finish,
                output.detail,
            )
    return answers


def test_a_request_that_nothing_can_be_chosen_for_fails_alone(golden_weights):
    weights, expected = golden_weights(TINY), golden(TINY)
    config = RankConfig(model=ModelConfig(path=""), cache=CacheConfig(num_blocks=8), engine=EngineConfig(audit="step"))
    scheduler = Scheduler(config.engine, BlockCache(8, b"test"), SystemClock(), max_context=1024)
    runner = Runner(weights, config, LocalExchange(weights.spec.num_experts))

    def submit(name, token_masks=(), **sampling):
        requests = expand_submission(
            RequestId(name),
            expected["prompt"],
            SamplingParams(temperature=0.0, max_tokens=24, **sampling),
            vocab_size=weights.spec.vocab_size,
            eos_token_ids=weights.spec.eos_token_ids,
            token_masks=token_masks,
        )
        scheduler.submit_all(requests)

    submit("good", ignore_eos=True)
    submit("every token is a stop", stop_token_ids=frozenset(range(160)), min_tokens=3)
    submit("grammar without a way on", token_masks=[Bans()])
    answers = run_to_end(scheduler, runner)
    assert answers["good"] == (expected["greedy_24"], FinishReason.LENGTH, "")
    for name, reason, problem in (
        ("every token is a stop", FinishReason.FAILED, "no token can be chosen"),
        (
            "grammar without a way on",
            FinishReason.DEAD_END,
            "the constraint allows no token: the grammar ends in a wall",
        ),
    ):
        tokens, finish, detail = answers[name]
        assert (tokens, finish) == ([], reason)
        assert name in detail and problem in detail
    scheduler.check()
    assert not scheduler.has_work


class Stay:
    """What the block tables read of a request."""

    def __init__(self, slot, generation, block_ids):
        self.slot, self.generation, self.block_ids = slot, generation, block_ids


def test_block_tables_append_what_is_new_and_start_afresh_for_another_stay():
    tables = BlockTables(2, 4)
    first = Stay(1, 7, [5, 6])
    tables.update(first)
    assert tables.array.tolist() == [[0, 0, 0, 0], [5, 6, 0, 0]]
    first.block_ids.append(9)
    tables.update(first)
    assert tables.array[1].tolist() == [5, 6, 9, 0]
    # shorter and of another stay: the old row must not show through where it is read
    tables.update(Stay(1, 8, [3]))
    assert tables.array[1, 0] == 3
    tables.update(Stay(0, 9, [1, 2, 3, 4]))
    assert np.array_equal(tables.array[0], [1, 2, 3, 4])
