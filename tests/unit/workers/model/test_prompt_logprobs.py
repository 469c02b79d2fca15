"""Log-probabilities of prompts against a plain reference that sees the whole text, however the prompt is computed."""

import pytest
import torch

from baleen.clock import SystemClock
from baleen.config import CacheConfig, EngineConfig, ModelConfig, RankConfig
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from tests.support.golden import golden
from tests.support.models import plain_tensors
from tests.support.reference_model import ReferenceModel
from workers.cache.blocks import BlockCache
from workers.engine.batch import Batch, BatchItem, SamplingFailure
from workers.engine.scheduler import Scheduler
from workers.engine.submission import expand_submission, prefill_request
from workers.model import prompt_scores
from workers.model.prompt_scores import score_prompts
from workers.model.runner import Runner
from workers.parallel.local import LocalExchange

TINY = "tiny_v32_golden"
PROMPT = golden(TINY)["prompt"] * 2
NEAR = 2e-5


@pytest.fixture(scope="module")
def weights(golden_weights):
    return golden_weights(TINY)


@pytest.fixture(scope="module")
def reference(golden_directory, weights):
    """[T, vocab]: of every position, the log-probabilities of the next token."""
    logits, _ = ReferenceModel(weights.spec, plain_tensors(golden_directory(TINY))).forward(PROMPT)
    return logits.double().log_softmax(-1)


class Rank:
    """Scheduler and runner of one rank."""

    def __init__(self, weights, chunk=1000):
        engine = EngineConfig(max_chunk_tokens=chunk, audit="step")
        config = RankConfig(model=ModelConfig(path=""), cache=CacheConfig(num_blocks=8), engine=engine)
        self.spec = weights.spec
        self.scheduler = Scheduler(engine, BlockCache(8, b"test"), SystemClock(), max_context=1024)
        self.runner = Runner(weights, config, LocalExchange(weights.spec.num_experts))

    def requests(self, name, **options):
        sampling = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True, **options)
        vocab = {"vocab_size": self.spec.vocab_size, "eos_token_ids": self.spec.eos_token_ids}
        return expand_submission(RequestId(name), PROMPT, sampling, **vocab)

    def run(self, requests):
        """What is reported of the prompts, and the sampled tokens."""
        self.scheduler.submit_all(requests)
        reports, tokens = [], []
        while (batch := self.scheduler.schedule()) is not None:
            self.scheduler.commit(batch, self.runner.run(batch))
            reports += [report.logprobs for report in self.scheduler.take_prompts()]
            tokens += [token.token_id for output in self.scheduler.take_outputs() for token in output.tokens]
        return reports, tokens


def joined(reports):
    """Token log-probabilities, rivals and their log-probabilities of all parts, which follow each other from 1 on."""
    place = 1
    for report in reports:
        assert report.position == place
        place = report.end
    return tuple(
        [x for part in reports for x in getattr(part, name)] for name in ("logprobs", "top_ids", "top_logprobs")
    )


def require_near(reports, reference, num_top):
    values, ids, rivals = joined(reports)
    places = range(1, len(PROMPT))
    assert values == pytest.approx([float(reference[place - 1, PROMPT[place]]) for place in places], abs=NEAR)
    best = reference[:-1].topk(max(num_top, 1), dim=-1)
    assert rivals == pytest.approx(best.values[:, :num_top].flatten().tolist(), abs=NEAR)
    assert ids == best.indices[:, :num_top].flatten().tolist()


@pytest.mark.parametrize(("chunk", "num_top"), [(1000, 3), (1000, 0), (7, 3), (64, 20)])
def test_every_chunking_gives_what_the_reference_has(weights, reference, chunk, num_top):
    rank = Rank(weights, chunk)
    reports, tokens = rank.run(rank.requests("a", prompt_logprobs=num_top))
    require_near(reports, reference, num_top)
    # the answer is that of a request without
    assert rank.run(rank.requests("b"))[1] == tokens


def test_neither_a_warm_cache_nor_slices_nor_siblings_change_a_bit(weights, monkeypatch):
    rank = Rank(weights)
    cold, _ = rank.run(rank.requests("a", prompt_logprobs=2))
    assert rank.run(rank.requests("b", prompt_logprobs=2, n=2))[0] == cold
    monkeypatch.setattr(prompt_scores, "SLICE_NUMBERS", 9 * weights.spec.vocab_size)
    assert joined(rank.run(rank.requests("c", prompt_logprobs=2))[0]) == joined(cold)


def test_a_prefill_and_whoever_goes_on_give_all_together(weights, reference):
    rank = Rank(weights)
    rank.scheduler.on_prefilled = lambda request: None
    prefill = prefill_request(RequestId("p"), PROMPT, vocab_size=weights.spec.vocab_size, prompt_logprobs=1)
    first, _ = rank.run([prefill])
    (request,) = expand_submission(
        RequestId("d"),
        PROMPT,
        SamplingParams(max_tokens=1, prompt_logprobs=1),
        vocab_size=weights.spec.vocab_size,
        eos_token_ids=(),
        prompt_logprobs_from=first[-1].end,
    )
    rest, _ = rank.run([request])
    assert request.num_cached == first[-1].end - 1 == 64
    require_near(first + rest, reference, 1)


def test_a_prompt_whose_logits_are_no_numbers_fails_alone(weights):
    rank = Rank(weights)
    good, bad = (rank.requests(name, prompt_logprobs=1)[0] for name in "ab")
    items = [BatchItem(request, 0, 4, samples=False, scored=range(1, 5)) for request in (good, bad)]
    logits = torch.zeros(8, 160)
    logits[6, 9] = float("nan")
    found = score_prompts(lambda x: x, logits, items, 160)
    assert found[good].logprobs == pytest.approx([-torch.tensor(160.0).log().item()] * 4)
    assert found[bad] == SamplingFailure("token 3 of the prompt has no log-probability")


def test_a_step_without_prompts_to_score_computes_no_more_logits(weights):
    rank = Rank(weights)
    (request,) = rank.requests("a")
    request.slot, request.block_ids = 0, [0, 1]
    step, owners = rank.runner._forward_batch((BatchItem(request, 0, 30, samples=True),))
    assert step.logit_tokens_N.tolist() == [29] and owners == [0]
    assert rank.runner.run(Batch((BatchItem(request, 0, 30, samples=False),), 30)).scored == {}
