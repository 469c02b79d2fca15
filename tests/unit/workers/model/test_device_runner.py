"""Steps of a device's runner, with references in its table and kernels that sample: batches in, tokens out."""

import pytest
import torch

from baleen.config import CacheConfig, EngineConfig, ModelConfig, RankConfig
from baleen.errors import ConfigError
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from tests.support.golden import golden
from workers.engine.batch import Batch, BatchItem
from workers.engine.submission import expand_submission
from workers.model.checkpoint import Checkpoint
from workers.model.loading import load_device_weights
from workers.parallel.local import LocalExchange

NAME = "dev_bf16.golden"


@pytest.fixture
def runner(device, golden_directory, monkeypatch):
    from tests.support.reference_operations import reference_operations
    from workers.model import device_runner

    if device == "cpu":
        monkeypatch.setattr(device_runner, "triton_operations", reference_operations)
    with Checkpoint.open(golden_directory(NAME)) as checkpoint:
        place = torch.device(device)
        weights, _ = load_device_weights(checkpoint, rank=0, world_size=1, device=place, progress=False)
    config = RankConfig(
        model=ModelConfig(path="unused", compute_dtype="bfloat16", kernels="triton"),
        cache=CacheConfig(dtype="bfloat16", num_blocks=8),
        engine=EngineConfig(max_running=2),
    )
    made = device_runner.DeviceRunner(weights, config, LocalExchange(weights.spec.num_experts))
    made.warm_up()
    return made


def request(number, prompt, blocks, **sampling):
    params = SamplingParams(seed=number, ignore_eos=True, **sampling)
    made = expand_submission(RequestId(f"r{number}"), prompt, params, vocab_size=512, eos_token_ids=(1,))[0]
    made.slot, made.block_ids = number, blocks
    return made


def test_prompts_then_a_decode_step_of_all(runner):
    cases = golden(NAME)["cases"]
    first = request(0, cases[0]["prompt"], [5], temperature=0.0)
    second = request(1, cases[1]["prompt"], [2, 7], temperature=1.0, top_k=1, logprobs=1)
    sizes = [len(one.token_ids) for one in (first, second)]
    items = (BatchItem(first, 0, sizes[0], samples=True), BatchItem(second, 0, sizes[1], samples=True))
    result = runner.run(Batch(items, sum(sizes))).sampled
    assert result[0].token_id == cases[0]["greedy"][0]
    # top_k 1 is the best token, and so the first of those reported
    assert result[1].token_id == result[1].top_logprobs[0][0]
    for one, token in zip((first, second), result, strict=True):
        one.token_ids.append(token.token_id)
    step = Batch(
        tuple(BatchItem(one, size, 1, samples=True) for one, size in zip((first, second), sizes, strict=True)), 2
    )
    again = runner.run(step).sampled
    logits = runner.logits(step)
    assert [token.token_id for token in again] == logits.argmax(-1).tolist()


def test_ranks_that_would_fill_their_steps_up_to_other_sizes_do_not_start(runner, monkeypatch):
    monkeypatch.setattr(runner._exchange, "swap", lambda mine: torch.tensor([[2, 512, 512], [3, 512, 512]]))
    with pytest.raises(ConfigError, match="2 requests, 512 tokens and chunks of 512 here, 3, 512 and 512 at rank 1"):
        runner.warm_up()


def test_a_device_computes_every_prompt_of_its_warm_up(runner, monkeypatch):
    computed = []
    monkeypatch.setattr(runner._model, "forward", lambda step: computed.append((step.num_tokens, step.most_context)))
    runner._compute(runner._prompts)
    assert computed == [(len(places), places.stop) for places in runner._prompts]


def test_an_item_that_does_not_sample_has_no_token(runner):
    prompt = golden(NAME)["cases"][1]["prompt"]
    one = request(0, prompt, [3], temperature=0.0)
    assert runner.run(Batch((BatchItem(one, 0, 20, samples=False),), 20)).sampled == (None,)
    assert runner.run(None).sampled == ()


def test_prompts_are_scored_beside_what_samples(runner):
    cases = golden(NAME)["cases"]
    first = request(0, cases[0]["prompt"], [5], temperature=0.0)
    second = request(1, cases[1]["prompt"], [2, 7], temperature=0.0, prompt_logprobs=2)
    sizes = [len(one.token_ids) for one in (first, second)]
    items = (
        BatchItem(second, 0, sizes[1], samples=True, scored=range(1, sizes[1])),
        BatchItem(first, 0, sizes[0], samples=True),
    )
    result = runner.run(Batch(items, sum(sizes)))
    plain = runner.run(Batch((BatchItem(second, 0, sizes[1], True), BatchItem(first, 0, sizes[0], True)), sum(sizes)))
    assert result.sampled == plain.sampled and not plain.scored
    scores = result.scored[second]
    assert (scores.position, scores.end, scores.num_top) == (1, sizes[1], 2)
    for place in (1, sizes[1] - 1):
        one = request(1, second.token_ids[:place], [2, 7], temperature=0.0)
        logits = runner.logits(Batch((BatchItem(one, 0, place, samples=True),), place))[0].double().log_softmax(-1)
        assert scores.logprobs[place - 1] == pytest.approx(float(logits[second.token_ids[place]]), abs=0.02)
        assert scores.part(place, place + 1).top_logprobs == pytest.approx(logits.topk(2).values.tolist(), abs=0.02)
