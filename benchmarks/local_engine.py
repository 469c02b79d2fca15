"""One rank's engine in this process, for measurements that need to look inside a step."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from baleen.clock import SystemClock
from baleen.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, RankConfig
from baleen.ids import RequestId, new_incarnation
from baleen.sampling import SamplingParams
from baleen.telemetry import Log
from workers import startup
from workers.engine.submission import expand_submission
from workers.model.make_checkpoint import CheckpointRecipe, make_checkpoint

CONFIG: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "n_routed_experts": 32,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "q_lora_rank": 256,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "index_n_heads": 32,
    "index_head_dim": 128,
    "index_topk": 256,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "rope_type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "rope_theta": 10000,
    },
}
"""60 million parameters with the real model's head widths: large enough that arithmetic outweighs Python."""


@contextmanager
def benchmark_checkpoint(**changes: Any) -> Iterator[Path]:
    """A float32 checkpoint of CONFIG, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="baleen-bench-") as directory:
        path = Path(directory) / "model"
        recipe = CheckpointRecipe(config={**CONFIG, **changes}, dtype="float32", tokenizer=None)
        make_checkpoint(path, recipe, progress=False)
        yield path


@dataclass
class LocalEngine:
    """Scheduler and runner of one rank; `step` does what the rank's loop does, without a group."""

    engine: startup.Engine
    forward_s: float = 0.0
    num_steps: int = 0

    @classmethod
    def start(cls, model: Path, *, num_blocks: int, max_running: int = 64, max_batch_tokens: int = 4096) -> LocalEngine:
        """Load the checkpoint and warm up."""
        config = RankConfig(
            model=ModelConfig(path=str(model)),
            cache=CacheConfig(num_blocks=num_blocks),
            engine=EngineConfig(
                max_running=max_running, max_batch_tokens=max_batch_tokens, max_chunk_tokens=max_batch_tokens
            ),
            parallel=ParallelConfig(),
        )
        clock = SystemClock()
        timeline = startup.Timeline(clock)
        group = startup.join(config, timeline, on_end=print, clock=clock, incarnation=new_incarnation())
        local = cls(startup.load(config, group, timeline, clock=clock, log=Log("off")))
        local._time_forward()
        return local

    def _time_forward(self) -> None:
        """Count the seconds of the forward pass apart from all else."""
        model = self.engine.runner._model
        original = model.forward

        def timed(step: Any) -> torch.Tensor:
            begin = time.perf_counter()
            logits = original(step)
            self.forward_s += time.perf_counter() - begin
            return logits

        model.forward = timed  # type: ignore[method-assign]

    def submit(self, name: str, prompt: Sequence[int], **sampling: Any) -> None:
        """Submit one request."""
        requests = expand_submission(
            RequestId(name),
            prompt,
            SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **sampling}),
            vocab_size=self.engine.spec.vocab_size,
            eos_token_ids=self.engine.spec.eos_token_ids,
        )
        self.engine.scheduler.submit_all(requests)

    def step(self) -> int:
        """One step; returns the number of tokens that came out."""
        scheduler = self.engine.scheduler
        batch = scheduler.schedule()
        if batch is None:
            return 0
        scheduler.commit(batch, self.engine.runner.run(batch))
        self.num_steps += 1
        return sum(len(output.tokens) for output in scheduler.take_outputs())

    def finish(self) -> int:
        """Step until nothing is left; returns the number of tokens that came out."""
        total = 0
        while self.engine.scheduler.has_work:
            total += self.step()
        return total


def random_prompts(lengths: Sequence[int], *, seed: int = 0) -> list[list[int]]:
    """Prompts of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    vocab = int(CONFIG["vocab_size"])
    return [torch.randint(3, vocab, (length,), generator=generator).tolist() for length in lengths]


def names() -> Iterator[str]:
    """Fresh request names."""
    return (f"bench-{i}" for i in itertools.count())
