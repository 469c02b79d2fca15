"""baleen beside transformers' DeepseekV32ForCausalLM: the same checkpoint, prompts, process and threads, in turns.

usage: python -m benchmarks.against_transformers [--threads N]

Decode: every request has its prompt computed; measured are the steps after it, one token for each request a step.
transformers gets the batch left-padded to the longest prompt, with its own cache. Both decode greedily. Each figure is
the best of several repetitions, since other work on the machine only ever slows one down. Both of transformers'
attention implementations are measured, and the faster one counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# as a rank process does, and before torch is loaded: spinning threads lose more than they win beside other work
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.local_engine import LocalEngine, benchmark_checkpoint, random_prompts
from tests.support.transformers_model import transformers_model

DECODE_BATCHES = (1, 8, 32)
PREFILL_LENGTHS = (512, 2048)
SHORTEST, LONGEST = 32, 512
DECODE_STEPS = 24
REPETITIONS = 3


def best_s(work: Callable[[], None], repetitions: int = REPETITIONS) -> float:
    """Seconds of the fastest repetition."""
    times = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def mixed_prompts(batch: int) -> list[list[int]]:
    """Prompts of mixed lengths, the longest one always among them."""
    lengths = [random.Random(batch).randint(SHORTEST, LONGEST) for _ in range(batch - 1)] + [LONGEST]
    return random_prompts(lengths, seed=batch)


def baleen_prefill(local: LocalEngine, length: int) -> float:
    """Prompt tokens per second; a new prompt each time, so that no prefix is found in the cache."""
    seeds = iter(range(1000, 2000))

    def work() -> None:
        seed = next(seeds)
        local.submit(f"prefill-{length}-{seed}", random_prompts([length], seed=seed)[0], max_tokens=1)
        local.finish()

    return length / best_s(work)


def baleen_decode(local: LocalEngine, prompts: list[list[int]]) -> float:
    """Output tokens per second of steps in which every request decodes."""
    for i, prompt in enumerate(prompts):
        local.submit(f"decode-{len(prompts)}-{i}", prompt, max_tokens=DECODE_STEPS * REPETITIONS + 8)
    while local.step() < len(prompts):
        pass

    def work() -> None:
        for _ in range(DECODE_STEPS):
            assert local.step() == len(prompts)

    seconds = best_s(work)
    local.finish()
    return len(prompts) * DECODE_STEPS / seconds


@torch.inference_mode()
def transformers_prefill(model: Any, length: int) -> float:
    """Prompt tokens per second, with a cache to fill and the last position's logits, as ours."""
    prompt = torch.tensor(random_prompts([length], seed=7))
    return length / best_s(lambda: model(prompt, use_cache=True, logits_to_keep=1), 2)


@torch.inference_mode()
def transformers_decode(model: Any, prompts: list[list[int]], steps: int) -> float:
    """Output tokens per second after the prompts, batched with left padding."""
    longest = max(len(prompt) for prompt in prompts)
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model(padded, attention_mask=mask, use_cache=True, logits_to_keep=1)
    cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
    times = []
    for _ in range(steps):
        mask = torch.cat((mask, torch.ones(len(prompts), 1, dtype=mask.dtype)), dim=1)
        begin = time.perf_counter()
        out = model(token, attention_mask=mask, past_key_values=cache, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
        times.append(time.perf_counter() - begin)
    return len(prompts) / min(times)


def measure(path: Path) -> list[dict[str, Any]]:
    """One row for each point: tokens per second of both, and their ratio."""
    local = LocalEngine.start(path, num_blocks=600)
    models = {name: transformers_model(path, name) for name in ("eager", "sdpa")}
    rows: list[dict[str, Any]] = []
    for length in PREFILL_LENGTHS:
        ours = baleen_prefill(local, length)
        theirs = {name: transformers_prefill(model, length) for name, model in models.items()}
        rows.append(row(f"prefill of {length}", ours, theirs))
    for batch in DECODE_BATCHES:
        prompts = mixed_prompts(batch)
        ours = baleen_decode(local, prompts)
        steps = 8 if batch < 32 else 3
        theirs = {name: transformers_decode(model, prompts, steps) for name, model in models.items()}
        rows.append(row(f"decode, batch {batch}", ours, theirs))
    return rows


def row(point: str, ours: float, theirs: dict[str, float]) -> dict[str, Any]:
    """Round to what the measurement supports."""
    fastest = max(theirs.values())
    return {
        "point": point,
        "baleen_tokens_per_s": round(ours, 1),
        **{f"transformers_{name}_tokens_per_s": round(value, 1) for name, value in theirs.items()},
        "ratio": round(ours / fastest, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="compute threads of both")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with benchmark_checkpoint() as path:
        print(json.dumps({"threads": arguments.threads, "rows": measure(path)}, indent=1))


if __name__ == "__main__":
    main()
