"""Whether the engine's memory grows with the number of requests it has served.

usage: python -m benchmarks.memory_growth [--requests N]

Serves short requests with distinct prompts, some aborted, some with several completions, through a pool that is small
enough to evict all the time. Reports resident memory (MiB) after each tenth, from /proc/self/status.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import re
from pathlib import Path

import torch

from baleen.ids import RequestId
from benchmarks.local_engine import LocalEngine, benchmark_checkpoint

TINY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_attention_heads": 2,
    "q_lora_rank": 32,
    "index_n_heads": 2,
    "index_topk": 64,
    "vocab_size": 512,
}


def resident_mib() -> float:
    """Resident memory of this process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Serve and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    count = parser.parse_args().requests
    torch.set_num_threads(1)
    draw = random.Random(0)
    samples = []
    with benchmark_checkpoint(**TINY) as path:
        local = LocalEngine.start(path, num_blocks=200, max_batch_tokens=2048)
        for i in range(count):
            prompt = [draw.randrange(3, 512) for _ in range(draw.randrange(1, 150))]
            local.submit(f"r{i}", prompt, max_tokens=draw.randrange(1, 6), n=draw.choice((1, 1, 1, 3)))
            if draw.random() < 0.1:
                local.engine.scheduler.abort(RequestId(f"r{draw.randrange(max(0, i - 20), i + 1)}"))
            while local.engine.scheduler.num_waiting > 32:
                local.step()
            if (i + 1) % (count // 10) == 0:
                local.finish()
                local.engine.scheduler.check()
                gc.collect()
                samples.append(round(resident_mib(), 1))
    # the first tenth fills allocator pools and caches
    print(json.dumps({"requests": count, "resident_mib": samples, "growth_mib": round(samples[-1] - samples[0], 1)}))


if __name__ == "__main__":
    main()
