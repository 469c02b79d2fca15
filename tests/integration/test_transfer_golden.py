"""Golden tokens when the prefix was computed by another rank, in every cache format, and when a request moves."""

from __future__ import annotations

import itertools

import pytest

from baleen.config import CacheConfig, ModelConfig, RankConfig
from baleen.seeds import completion_seed
from tests.support.loop_rank import Rank, RealModel
from tests.support.models import golden_cases, load_whole, make_golden_checkpoint
from workers.cache.tensors import CacheBytes
from workers.model.runner import Runner
from workers.parallel.local import LocalExchange
from workers.transfer.tcp import TcpTransport

NUM_BLOCKS = 64


@pytest.fixture(scope="module", params=["tiny_v32_golden", "dev_bf16.golden", "dev_fp8.golden"])
def golden(request, tmp_path_factory):
    """Name and weights of one golden checkpoint."""
    directory = make_golden_checkpoint(request.param, tmp_path_factory.mktemp("model"))
    return request.param, load_whole(directory)


def real_rank(weights, *, cache_dtype="float32", prefix_cache=True, chunk=256):
    """A rank over these weights that takes and sends blocks."""
    config = RankConfig(model=ModelConfig(path=""), cache=CacheConfig(num_blocks=NUM_BLOCKS, dtype=cache_dtype))
    runner = Runner(weights, config, LocalExchange(weights.spec.num_experts))
    fingerprint = weights.fingerprint + cache_dtype.encode()
    real = RealModel(weights.spec, fingerprint, runner, CacheBytes(runner.cache, cache_dtype))
    return Rank(
        num_blocks=NUM_BLOCKS,
        prefix_cache=prefix_cache,
        max_chunk_tokens=chunk,
        make_transport=lambda cache: TcpTransport("127.0.0.1", cache, weights.fingerprint.hex()),
        real=real,
    )


def close(*ranks):
    for rank in ranks:
        rank.transport.close()


def move(prefill, decode, name, prompt):
    """Compute a prompt's blocks on one rank for the other; the ticket."""
    reservation = decode.reserve(prompt).result(0)
    count = len(prefill.prefills_done)
    prefill.prefill(f"{name}-prefill", prompt, reservation)
    prefill.step_until(lambda: len(prefill.prefills_done) > count, decode)
    done = prefill.prefills_done[-1]
    assert done.failure is None and done.num_pushed == reservation.num_reserved_blocks
    return reservation.ticket


def greedy(case):
    count = len(case["greedy"])
    return {
        "max_tokens": count,
        "min_tokens": 0 if case["ignore_eos"] else count,
        "ignore_eos": case["ignore_eos"],
        "temperature": 0.0,
    }


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_the_decode_rank_gives_the_golden_tokens(golden, prefix_cache):
    name, weights = golden
    prefill = real_rank(weights, prefix_cache=prefix_cache, chunk=50)
    decode = real_rank(weights, prefix_cache=prefix_cache)
    for place, case in enumerate(golden_cases(name)):
        ticket = move(prefill, decode, f"c{place}", case["prompt"])
        decode.submit(f"c{place}", case["prompt"], ticket=ticket, **greedy(case))
        decode.step_until(lambda place=place: len(decode.finishes()) > place)
        assert decode.tokens_of(f"c{place}") == case["greedy"]
        assert decode.outputs[-1].num_cached_tokens == (len(case["prompt"]) - 1) // 64 * 64
    assert prefill.busy_blocks == decode.busy_blocks == 0
    close(prefill, decode)


def fetch(holder, other, prompt, num_blocks):
    """Have the first blocks of a prompt, which one rank holds, sent to another; the ticket."""
    prefix = prompt[: 64 * num_blocks + 1]
    reservation = other.reserve(prefix).result(0)
    command = holder.fetch(prefix, reservation)
    holder.step_until(command.reply.done, other)
    done = command.reply.result(0)
    assert done.failure is None and done.num_pushed == reservation.num_reserved_blocks > 0
    return reservation.ticket


@pytest.mark.parametrize("golden", ["dev_bf16.golden", "dev_fp8.golden"], indirect=True)
@pytest.mark.parametrize("prefix_cache", [True, False])
def test_golden_tokens_with_a_prefix_fetched_from_a_third_rank(golden, prefix_cache):
    """Once into the rank that computes the rest for another, and once into the one that goes on with it itself."""
    name, weights = golden
    holder = real_rank(weights, chunk=50)
    prefill, decode, lone = (real_rank(weights, prefix_cache=prefix_cache, chunk=50) for _ in range(3))
    case = max(golden_cases(name), key=lambda case: len(case["prompt"]))
    prompt, num_blocks = case["prompt"], (len(case["prompt"]) - 1) // 64
    assert num_blocks >= 2
    holder.prefill("warm", prompt)
    holder.step_until(lambda: holder.prefills_done)
    reservation = decode.reserve(prompt).result(0)
    prefill.prefill("p", prompt, reservation, ticket=fetch(holder, prefill, prompt, num_blocks - 1))
    prefill.step_until(lambda: prefill.prefills_done, decode)
    (done,) = prefill.prefills_done
    assert (done.num_blocks, done.num_pushed, done.num_cached) == (num_blocks, num_blocks, num_blocks - 1)
    decode.submit("d", prompt, ticket=reservation.ticket, **greedy(case))
    decode.step_until(lambda: decode.finishes())
    assert decode.tokens_of("d") == case["greedy"]
    lone.submit("l", prompt, ticket=fetch(holder, lone, prompt, num_blocks), **greedy(case))
    lone.step_until(lambda: lone.finishes())
    assert lone.tokens_of("l") == case["greedy"]
    assert lone.outputs[0].num_cached_tokens == 64 * num_blocks
    assert [rank.busy_blocks for rank in (holder, prefill, decode, lone)] == [0, 0, 0, 0]
    close(holder, prefill, decode, lone)


@pytest.mark.parametrize("golden", ["dev_fp8.golden"], indirect=True)
@pytest.mark.parametrize("cache_dtype", ["float32", "bfloat16", "float8"])
def test_every_cache_format_gives_the_tokens_of_one_rank_alone(golden, cache_dtype):
    name, weights = golden
    case = max(golden_cases(name), key=lambda case: len(case["prompt"]))
    lone, prefill, decode = (real_rank(weights, cache_dtype=cache_dtype) for _ in range(3))
    lone.submit("a", case["prompt"], **greedy(case))
    lone.step_until(lambda: lone.finishes())
    decode.submit("a", case["prompt"], ticket=move(prefill, decode, "a", case["prompt"]), **greedy(case))
    decode.step_until(lambda: decode.finishes())
    assert decode.tokens_of("a") == lone.tokens_of("a")
    close(lone, prefill, decode)


@pytest.mark.parametrize("golden", ["dev_fp8.golden"], indirect=True)
def test_ranks_with_different_formats_refuse_each_other(golden):
    _, weights = golden
    prefill, decode = real_rank(weights, cache_dtype="float32"), real_rank(weights, cache_dtype="bfloat16")
    prompt = list(range(100, 300))
    prefill.prefill("a", prompt, decode.reserve(prompt).result(0))
    prefill.step_until(lambda: prefill.prefills_done, decode)
    failure = prefill.prefills_done[0].failure
    assert "float32" in failure and "bfloat16" in failure and decode.transport.address in failure
    close(prefill, decode)


@pytest.mark.parametrize("golden", ["dev_fp8.golden"], indirect=True)
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 1.0, "seed": 5, "n": 3},
        {"temperature": 0.8, "seed": 1, "presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
        {"temperature": 1.0, "seed": 2, "min_tokens": 20, "ignore_eos": False},
    ],
)
def test_a_request_that_moves_gets_the_remaining_tokens(golden, sampling):
    """From each of several places, with and without its blocks moved: positions, penalties and limits go on."""
    _, weights = golden
    prompt = list(range(100, 230))
    first, second = real_rank(weights), real_rank(weights)
    options = {"max_tokens": 24, **sampling}
    first.submit("whole", prompt, **options)
    first.step_until(lambda: len(first.finishes()) == options.get("n", 1))
    whole = {
        index: [t.token_id for o in first.outputs if o.index == index for t in o.tokens]
        for index in range(options.get("n", 1))
    }
    ends = {index: finish for _, index, finish in first.finishes()}
    count = itertools.count()
    for index, tokens in whole.items():
        for delivered in {1, 7, len(tokens) - 1}:
            known = prompt + tokens[:delivered]
            name = f"moved-{next(count)}"
            ticket = move(first, second, name, known) if delivered == 7 else None
            alone = {**options, "n": 1, "seed": completion_seed(options.get("seed", 7), index)}
            second.submit(name, known, num_delivered=delivered, ticket=ticket, **alone)
            second.step_until(lambda name=name: any(end[0] == name for end in second.finishes()))
            outputs = [output for output in second.outputs if output.request_id == name]
            assert [token.token_id for output in outputs for token in output.tokens] == tokens[delivered:]
            assert [output.position for output in outputs] == list(range(delivered, len(tokens)))
            assert (outputs[-1].finish, outputs[-1].index) == (ends[index], 0)
            assert outputs[-1].num_prompt_tokens == len(prompt)
    close(first, second)
