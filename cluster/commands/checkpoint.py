"""`baleen checkpoint make | inspect | verify`: arguments in, text out; the work is done in workers/model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Literal

from baleen.errors import CheckpointError, ConfigError
from baleen.text.tokenizer_files import BundledTokenizer, tokenizer_files
from cluster.commands.checkpoint_report import inspection, inspection_text
from workers.model.checkpoint import Checkpoint, problems_error
from workers.model.fingerprint import fingerprint
from workers.model.make_checkpoint import PRESETS, CheckpointRecipe, StoredDtype, make_checkpoint
from workers.model.verify import check_tensors, check_values

_SIZE_FLAGS = {
    "--vocab": "vocab_size",
    "--hidden": "hidden_size",
    "--layers": "num_hidden_layers",
    "--mtp-layers": "num_nextn_predict_layers",
    "--dense-layers": "first_k_dense_replace",
    "--intermediate": "intermediate_size",
    "--moe-intermediate": "moe_intermediate_size",
    "--experts": "n_routed_experts",
    "--shared-experts": "n_shared_experts",
    "--experts-per-token": "num_experts_per_tok",
    "--expert-groups": "n_group",
    "--topk-groups": "topk_group",
    "--heads": "num_attention_heads",
    "--q-lora": "q_lora_rank",
    "--kv-lora": "kv_lora_rank",
    "--nope-dim": "qk_nope_head_dim",
    "--rope-dim": "qk_rope_head_dim",
    "--value-dim": "v_head_dim",
    "--index-heads": "index_n_heads",
    "--index-dim": "index_head_dim",
    "--index-topk": "index_topk",
    "--max-positions": "max_position_embeddings",
}
_SPEC_DTYPES: dict[object, StoredDtype] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float8": "float8",
    "fp8": "float8",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command; each subcommand sets `run`, a function of the arguments that returns the exit code."""
    parser = subparsers.add_parser("checkpoint", help="make, inspect or verify a checkpoint")
    commands = parser.add_subparsers(dest="checkpoint_command", required=True, metavar="make|inspect|verify")
    _add_make(commands.add_parser("make", help="write a small checkpoint in the real layout, from a formula"))
    _add_inspect(commands.add_parser("inspect", help="sizes: parameters, bytes per rank, cache, tokens that fit"))
    verify = commands.add_parser("verify", help="check every tensor; exit code 3 on any problem")
    verify.add_argument("directory", type=Path, metavar="DIR")
    verify.set_defaults(run=run_verify)


def _add_make(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--preset", choices=sorted(PRESETS), default="tiny", help="sizes to start from (tiny)")
    source.add_argument("--spec", type=Path, metavar="FILE", help='JSON object with "config", "seed" and "dtype"')
    parser.add_argument("--seed", type=int, help="of the formula (0)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float8"), help="of the weights (bfloat16)")
    parser.add_argument("--formula", choices=("scaled", "flat"), default="scaled", help="of the numbers (scaled)")
    parser.add_argument("--shards", type=int, default=2, metavar="N", help="safetensors files (2)")
    parser.add_argument("--tokenizer", choices=("bytes", "text", "none"), help="(bytes, if the vocabulary holds it)")
    parser.add_argument("--force", action="store_true", help="replace the checkpoint in a directory that is not empty")
    sizes = parser.add_argument_group("sizes", "each replaces one size of the preset or spec")
    for flag, field in _SIZE_FLAGS.items():
        sizes.add_argument(flag, type=int, dest=field, metavar="N", help=field)
    parser.set_defaults(run=run_make)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--ep", type=int, default=1, metavar="N", help="ranks that share the experts (1)")
    parser.add_argument("--gpu-memory-gib", type=float, metavar="X", help="how many tokens fit beside the weights")
    parser.add_argument("--cache-dtype", choices=("float8", "bfloat16", "float32"), help="(all three)")
    parser.add_argument("--config-only", action="store_true", help="size a model by its config.json, without weights")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(run=run_inspect)


def run_make(args: argparse.Namespace) -> int:
    """Write a checkpoint. Raises ConfigError on sizes, a spec file or a directory that cannot be used."""
    recipe = _recipe(args)
    spec = make_checkpoint(args.directory, recipe, overwrite=args.force, progress=True)
    with Checkpoint.open(args.directory) as checkpoint:
        numbers = f"{len(checkpoint.tensors):,} tensors, {checkpoint.num_file_bytes / 1e6:,.1f} MB"
        shards = len(checkpoint.shard_names)
    values = f"seed {recipe.seed}" if recipe.formula == "scaled" else "flat formula"
    tokenizer = f"{recipe.tokenizer} tokenizer" if recipe.tokenizer else "no tokenizer"
    sys.stdout.write(
        f"made {args.directory}: {spec.num_layers} layers, {spec.num_experts} experts, {numbers} in {shards} shards, "
        f"{recipe.dtype}, {values}, {tokenizer}\n"
    )
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    """Print the sizes of a checkpoint. Raises CheckpointError on a damaged one, ConfigError on an impossible EP."""
    if args.gpu_memory_gib is not None and not 0 < args.gpu_memory_gib < 2**20:
        raise ConfigError(f"--gpu-memory-gib is {args.gpu_memory_gib}, must be above 0 and below {2**20}")
    report = inspection(
        args.directory,
        world_size=args.ep,
        gpu_memory_gib=args.gpu_memory_gib,
        cache_dtypes=(args.cache_dtype,) if args.cache_dtype else ("float8", "bfloat16", "float32"),
        config_only=args.config_only,
    )
    sys.stdout.write(json.dumps(report) + "\n" if args.json else inspection_text(report))
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Check headers, table and values; problems go to stdout, and the exit code is CheckpointError's."""
    try:
        with Checkpoint.open(args.directory) as checkpoint:
            problems = check_tensors(checkpoint) + check_values(checkpoint, progress=True)
            if problems:
                raise problems_error(args.directory, problems)
            sys.stdout.write(
                f"OK {args.directory}: {len(checkpoint.tensors):,} tensors in {len(checkpoint.shard_names)} shards, "
                f"{checkpoint.num_file_bytes:,} bytes, fingerprint {fingerprint(checkpoint).hex()}\n"
            )
    except CheckpointError as error:
        sys.stdout.write(f"{error}\n")
        return error.exit_code
    return 0


def _recipe(args: argparse.Namespace) -> CheckpointRecipe:
    if args.formula == "flat" and args.seed is not None:
        raise ConfigError(f"--seed is {args.seed}, but the flat formula has no seed")
    given = _read_spec(args.spec) if args.spec else {"config": PRESETS[args.preset]}
    asked = {field: getattr(args, field) for field in _SIZE_FLAGS.values()}
    config = {**given["config"], **{field: value for field, value in asked.items() if value is not None}}
    dtype = args.dtype or given.get("dtype", "bfloat16")
    seed = args.seed if args.seed is not None else given.get("seed", 0)
    if dtype not in _SPEC_DTYPES:
        raise ConfigError(f"{args.spec}: dtype is {dtype!r}, must be float32, bfloat16 or float8")
    if not isinstance(seed, int):
        raise ConfigError(f"{args.spec}: seed is {seed!r}, must be an integer")
    return CheckpointRecipe(
        config=config,
        seed=seed,
        dtype=_SPEC_DTYPES[dtype],
        formula=args.formula,
        num_shards=args.shards,
        tokenizer=_tokenizer(args.tokenizer, config.get("vocab_size")),
    )


def _tokenizer(asked: BundledTokenizer | Literal["none"] | None, vocab_size: object) -> BundledTokenizer | None:
    """The one asked for; without a wish, bytes where its ids fit, since a spec may have a tiny vocabulary."""
    if asked is not None:
        return None if asked == "none" else asked
    fits = isinstance(vocab_size, int) and vocab_size >= tokenizer_files("bytes", max_length=1).num_ids
    return "bytes" if fits else None


def _read_spec(path: Path) -> dict[str, Any]:
    """A spec file: "config" as config.json has it, and perhaps "seed" and "dtype"; other keys are left alone."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("config"), dict):
        raise ConfigError(f'{path}: must hold an object with "config", an object of sizes')
    return raw
