"""What a step costs beside the forward pass, with 64 requests running at contexts of about 1,000 tokens.

usage: python -m benchmarks.engine_overhead

Counted: scheduling, block tables and batch tensors, sampling, commit, outputs. A small model, so that its memory
traffic disturbs little; the figure does not depend on its size, except for the sampler's share, which grows with the
vocabulary. Reported for greedy requests and for sampled ones (temperature 1, top_p 0.95).
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch

from benchmarks.local_engine import LocalEngine, benchmark_checkpoint, random_prompts

RUNNING = 64
CONTEXT = 960
STEPS = 100


def measure(local: LocalEngine, label: str, **sampling: Any) -> dict[str, Any]:
    """Milliseconds per step that are not the forward pass."""
    for i, prompt in enumerate(random_prompts([CONTEXT] * RUNNING)):
        local.submit(f"{label}-{i}", prompt, max_tokens=STEPS + 40, **sampling)
    while local.step() < RUNNING:
        pass
    overheads = []
    for _ in range(STEPS):
        before, begin = local.forward_s, time.perf_counter()
        assert local.step() == RUNNING
        overheads.append((time.perf_counter() - begin - (local.forward_s - before)) * 1e3)
    local.finish()
    quartiles = statistics.quantiles(overheads, n=4)
    return {
        "requests": label,
        "overhead_ms_median": round(quartiles[1], 3),
        "overhead_ms_quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
    }


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    with benchmark_checkpoint(num_hidden_layers=2, hidden_size=128, index_topk=64, vocab_size=4096) as path:
        local = LocalEngine.start(path, num_blocks=RUNNING * 20, max_batch_tokens=8192)
        rows = [measure(local, "greedy"), measure(local, "sampled", temperature=1.0, top_p=0.95, seed=1)]
    print(json.dumps({"running": RUNNING, "context": CONTEXT, "steps": STEPS, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
