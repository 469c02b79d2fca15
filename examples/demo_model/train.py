"""Trains the demo model: `python -m examples.demo_model.train DIR`; run again, it goes on where DIR ends.

Three stages, as DeepSeek-V3.2 was trained: dense attention; a warm-up of the indexer alone, towards what attention
attends to; then sparse attention with everything learning, the indexer from its own loss only. The learning rate is
constant until the last part, so a longer run may continue a shorter one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from baleen.model_spec import model_spec_from_config
from examples.demo_model.config import CONFIG
from examples.demo_model.copying import begin_with_copying_heads, fits
from examples.demo_model.data import Stream, mixture
from examples.demo_model.model import Packed, TrainingModel, initial_parameters, pack
from examples.demo_model.optimizer import Optimizer
from workers.model.make_checkpoint import CheckpointRecipe

HERE = Path(__file__).resolve().parent
WARM_UP_STEPS = 50
MTP_WEIGHT = 0.3
BALANCE_SPEED = 0.01
"""How far an expert's correction bias moves in a step, against its load."""

LOG_EVERY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Millions of tokens of each stage."""

    dense: float
    index: float
    sparse: float
    decay: float
    """The last part, in which the learning rate falls to nothing."""
    mtp: float
    """The last part of the sparse stage, in which the prediction layer learns."""

    def stage(self, millions: float) -> str:
        """What runs after so many tokens."""
        if millions < self.dense:
            return "dense"
        return "index" if millions < self.dense + self.index else "sparse"

    @property
    def total(self) -> float:
        """All of it."""
        return self.dense + self.index + self.sparse

    def rate(self, millions: float, steps: int) -> float:
        """Factor of the learning rates."""
        left = max(0.0, min(1.0, (self.total - millions) / self.decay))
        return min(1.0, (steps + 1) / WARM_UP_STEPS) * left


class Training:
    """The state of a run, in one folder."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self._directory = directory
        self._options = options
        self._plan = Plan(
            dense=options.dense,
            index=options.index,
            sparse=options.sparse,
            decay=options.decay,
            mtp=options.mtp,
        )
        self.spec = model_spec_from_config(CheckpointRecipe(config=CONFIG).full_config())
        self.parameters = initial_parameters(self.spec, options.seed)
        if fits(self.spec):
            begin_with_copying_heads(self.spec, self.parameters, options.seed)
        self.model = TrainingModel(self.spec, self.parameters)
        self._optimizer = Optimizer(self.spec, self.parameters, muon_lr=options.muon_lr, adam_lr=options.adam_lr)
        self._stream = Stream(Tokenizer.from_file(str(HERE / "tokenizer.json")), options.seed)
        self._indexer = {name for name in self.parameters if ".indexer." in name}
        self.steps = self.tokens = 0
        self._stage = ""
        if self._state_file.exists():
            self._restore()

    @property
    def _state_file(self) -> Path:
        return self._directory / "state.pt"

    def run(self, *, max_steps: int | None = None) -> None:
        """Train to the end of the plan, or to a number of steps."""
        saved = begun = time.monotonic()
        begun_tokens = self.tokens
        sums: dict[str, list[float]] = {}
        while self.tokens / 1e6 < self._plan.total and (max_steps is None or self.steps < max_steps):
            self._set_stage(self._plan.stage(self.tokens / 1e6))
            self.model.mtp = self._stage == "sparse" and self._plan.total - self.tokens / 1e6 < self._plan.mtp
            found = self._step()
            for name, value in found.items():
                sums.setdefault(name, []).append(value)
            if self.steps % LOG_EVERY == 0:
                speed = (self.tokens - begun_tokens) / (time.monotonic() - begun)
                self._log({name: sum(values) / len(values) for name, values in sums.items()}, speed)
                sums = {}
            if time.monotonic() - saved > self._options.save_s:
                self._save()
                saved = time.monotonic()
        self._save()

    def _set_stage(self, stage: str) -> None:
        if stage == self._stage:
            return
        self._stage = stage
        self.model.indexer = stage in ("index", "sparse")
        self.model.sparse = stage == "sparse"
        for name, tensor in self.parameters.items():
            if not name.endswith("e_score_correction_bias"):
                tensor.requires_grad_(stage != "index" or name in self._indexer)

    def _step(self) -> dict[str, float]:
        longest, shares = mixture(self.tokens / 1e6)
        if self._stage == "index":
            shares = {name: share for name, share in shares.items() if name in ("recall", "tools")}
        batch = pack(self._stream.batch(self._options.batch_tokens, shares, longest))
        self.model.index_turn = self.steps
        losses = self.model.losses(batch)
        total = losses.index + (MTP_WEIGHT * losses.mtp if self.model.mtp else 0.0)
        if self._stage != "index":
            total = total + losses.main
        if total.requires_grad:
            total.backward()
            self._optimizer.step(self._plan.rate(self.tokens / 1e6, self.steps))
        self._balance(losses.loads)
        self.steps += 1
        self.tokens += len(batch.ids)
        spread = max(float(load.max() * len(load) / load.sum()) for load in losses.loads.values())
        found = {"loss": float(losses.main.detach()), "written": _written(losses.per_token, batch), "load": spread}
        if self.model.indexer:
            found["index"] = float(losses.index.detach())
        if self.model.mtp:
            found["mtp"] = float(losses.mtp.detach())
        return found

    def _balance(self, loads: dict[str, torch.Tensor]) -> None:
        """Make experts with little work more attractive: the only thing that keeps them even."""
        if self._stage == "index":
            return
        for prefix, load in loads.items():
            share = load.float() / load.sum() * len(load)
            self.parameters[prefix + "gate.e_score_correction_bias"].sub_(BALANCE_SPEED * (share - 1).sign())

    def _log(self, means: dict[str, float], speed: float) -> None:
        row = {"step": self.steps, "tokens": self.tokens, "stage": self._stage, "tokens_per_s": round(speed)}
        row |= {name: round(value, 4) for name, value in means.items()}
        with (self._directory / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        sys.stdout.write(" ".join(f"{name} {value}" for name, value in row.items()) + "\n")
        sys.stdout.flush()

    def _save(self) -> None:
        state: dict[str, Any] = {
            "parameters": {name: tensor.detach() for name, tensor in self.parameters.items()},
            "optimizer": self._optimizer.state(),
            "stream": self._stream.state(),
            "steps": self.steps,
            "tokens": self.tokens,
            "stage": self._stage,
        }
        part = self._state_file.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self._state_file)

    def _restore(self) -> None:
        # only a state that this program wrote: it holds plain tensors, numbers and tuples
        state = torch.load(self._state_file, weights_only=True)
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(state["parameters"][name])
        self._optimizer.restore(state["optimizer"])
        self._stream.restore(state["stream"])
        self.steps, self.tokens, self._stage = state["steps"], state["tokens"], ""


def _written(per_token: torch.Tensor, batch: Packed) -> float:
    """Mean loss over what the model writes."""
    weights = batch.weights[batch.weights > 0]
    return float(per_token[weights == 1.0].mean())


def main(arguments: list[str]) -> int:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="holds state.pt and log.jsonl")
    parser.add_argument("--dense", type=float, default=4.2, help="millions of tokens of the dense stage (default 4.2)")
    parser.add_argument("--index", type=float, default=0.4, help="millions of tokens of the indexer's warm-up")
    parser.add_argument(
        "--sparse", type=float, default=5.95, help="millions of tokens of the sparse stage (default 5.95)"
    )
    parser.add_argument("--decay", type=float, default=4.4, help="millions of tokens in which the rate falls")
    parser.add_argument("--mtp", type=float, default=2.0, help="last millions with the prediction layer (default 2)")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--muon-lr", type=float, default=0.012)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-s", type=float, default=120.0, help="seconds between two saved states (default 120)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.directory.mkdir(parents=True, exist_ok=True)
    Training(options.directory, options).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
