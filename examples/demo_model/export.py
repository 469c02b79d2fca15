"""Writes a trained state as a checkpoint: `python -m examples.demo_model.export STATE_DIR CHECKPOINT_DIR`.

Block-scaled float8 in Hugging Face layout, with the tokenizer; the prediction layer's copies of embedding and head are
written, as in the real checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from baleen.text.tokenizer_files import files_of_tokenizer
from examples.demo_model.config import CONFIG
from examples.demo_model.model import MTP_ALIASES
from workers.model.make_checkpoint import CheckpointRecipe, write_checkpoint
from workers.model.names import TensorRule

TOKENIZER = Path(__file__).resolve().parent / "tokenizer.json"


def export(state_file: Path, directory: Path, *, random_index_keys: int | None = None) -> None:
    """Write the parameters of a training state into `directory`, which may hold an older checkpoint.

    random_index_keys: a seed; the indexer's key projections are then random, of the same magnitude.
    """
    parameters = torch.load(state_file, weights_only=True)["parameters"]
    if random_index_keys is not None:
        generator = torch.Generator().manual_seed(random_index_keys)
        for name, tensor in parameters.items():
            if name.endswith("indexer.wk.weight"):
                parameters[name] = torch.randn(tensor.shape, generator=generator) * tensor.std()

    def values(rule: TensorRule) -> torch.Tensor:
        if rule.name in parameters:
            return parameters[rule.name].float()
        return parameters[MTP_ALIASES[rule.name.split(".", 3)[-1]]].float()

    tokenizer = files_of_tokenizer(
        TOKENIZER.read_text(encoding="utf-8"), name="demo", max_length=CONFIG["max_position_embeddings"]
    )
    recipe = CheckpointRecipe(config=CONFIG, dtype="float8", num_shards=2)
    write_checkpoint(directory, recipe, values, tokenizer, overwrite=True, progress=True)


def main() -> int:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", type=Path, help="folder of the training run")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--random-index-keys", type=int, metavar="SEED", help="for comparison: an indexer that knows nothing"
    )
    options = parser.parse_args()
    export(options.state / "state.pt", options.checkpoint, random_index_keys=options.random_index_keys)
    return 0


if __name__ == "__main__":
    sys.exit(main())
