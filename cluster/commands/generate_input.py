"""What `baleen generate` is asked to do: prompts and sampling parameters, checked before anything is started."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baleen.errors import CheckpointError, ConfigError, InvalidRequest
from baleen.model_spec import ModelSpec
from baleen.sampling import SamplingParams
from baleen.text.tokenizer import Tokenizer
from baleen.text.tokenizer_files import TOKENIZER_FILE

DEFAULT_MAX_TOKENS = 128


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What holds where no flag says otherwise: greedy, or what a checkpoint's generation_config.json recommends."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


def load_sampling_defaults(directory: Path) -> SamplingDefaults:
    """Read generation_config.json, where there is one: `do_sample` false or absent means greedy.

    Raises CheckpointError on a file that is no object, or a value that is no number.
    """
    path = directory / "generation_config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return SamplingDefaults()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: holds {type(raw).__name__}, expected an object")

    def number(name: str, default: float) -> float:
        value = raw.get(name)
        if value is not None and type(value) not in (int, float):
            raise CheckpointError(f"{path}: {name} is {value!r}, must be a number")
        return default if value is None else value

    return SamplingDefaults(
        temperature=number("temperature", 1.0) if raw.get("do_sample") is True else 0.0,
        top_k=int(number("top_k", 0)),
        top_p=number("top_p", 1.0),
        repetition_penalty=number("repetition_penalty", 1.0),
    )


def read_sampling(args: argparse.Namespace, defaults: SamplingDefaults, *, room: int) -> SamplingParams:
    """Sampling parameters from flags, then from the defaults. room: tokens that the longest prompt leaves free.

    Raises InvalidRequest with the field, the value and the limit.
    """

    def chosen(flag: Any, default: Any) -> Any:
        return default if flag is None else flag

    return SamplingParams(
        max_tokens=chosen(args.max_tokens, max(args.min_tokens, 1, min(DEFAULT_MAX_TOKENS, room))),
        min_tokens=args.min_tokens,
        temperature=chosen(args.temperature, defaults.temperature),
        top_k=chosen(args.top_k, defaults.top_k),
        top_p=chosen(args.top_p, defaults.top_p),
        min_p=args.min_p,
        repetition_penalty=chosen(args.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        logit_bias=_logit_bias(args.logit_bias),
        stop_token_ids=frozenset(args.stop_token_id),
        stop=tuple(args.stop),
        ignore_eos=args.ignore_eos,
        logprobs=args.logprobs,
        n=args.n,
        seed=args.seed,
    )


def read_prompts(args: argparse.Namespace, tokenizer: Tokenizer | None) -> list[list[int]]:
    """The prompts as token ids. Raises ConfigError on a file that holds no prompts, InvalidRequest on a text."""
    if args.prompt_ids is not None:
        return _prompts_from_file(args.prompt_ids)
    return [encode_prompt(text, tokenizer, args.model) for text in args.prompt]


def encode_prompt(text: str, tokenizer: Tokenizer | None, directory: Path) -> list[int]:
    """Token ids of a text. Raises ConfigError if the checkpoint has no tokenizer."""
    if tokenizer is None:
        raise ConfigError(f"{directory / TOKENIZER_FILE}: not found; without it give token ids with --prompt-ids")
    return tokenizer.encode(text)


def check_prompts(prompts: Sequence[Sequence[int]], spec: ModelSpec, *, max_tokens: int) -> None:
    """Raise InvalidRequest for an empty prompt, an unknown token or too many tokens, with the limit."""
    for number, prompt in enumerate(prompts):
        name = "the prompt" if len(prompts) == 1 else f"prompt {number}"
        if not prompt:
            raise InvalidRequest(f"{name} has 0 tokens, at least 1 is needed", field="prompt")
        for place, token in enumerate(prompt):
            if not 0 <= token < spec.vocab_size:
                raise InvalidRequest(
                    f"{name} holds token {token} at {place}, the vocabulary has ids 0 to {spec.vocab_size - 1}",
                    field="prompt",
                )
        if len(prompt) + max_tokens > spec.max_positions:
            raise InvalidRequest(
                f"{name} has {len(prompt)} tokens and {max_tokens} may be generated, the model has "
                f"{spec.max_positions} positions",
                field="prompt",
            )


def check_token_ids(flag: str, token_ids: Iterable[int], spec: ModelSpec) -> None:
    """Raise InvalidRequest for a token outside the vocabulary."""
    for token in token_ids:
        if not 0 <= token < spec.vocab_size:
            raise InvalidRequest(
                f"{flag} holds token {token}, the vocabulary has ids 0 to {spec.vocab_size - 1}", field=flag
            )


def _prompts_from_file(name: str) -> list[list[int]]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        raw = json.loads(text)
    except OSError as error:
        raise ConfigError(f"--prompt-ids {name}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--prompt-ids {name}: not valid JSON: {error}") from error
    if not isinstance(raw, list) or not raw:
        found = "an empty list" if raw == [] else type(raw).__name__
        raise ConfigError(f"--prompt-ids {name}: holds {found}, expected a list of token ids, or a list of such lists")
    prompts = raw if isinstance(raw[0], list) else [raw]
    for number, prompt in enumerate(prompts):
        wrong = [token for token in prompt if type(token) is not int] if isinstance(prompt, list) else [prompt]
        if wrong:
            raise ConfigError(f"--prompt-ids {name}: prompt {number} holds {wrong[0]!r}, expected integers")
    return prompts


def _logit_bias(text: str | None) -> dict[int, float]:
    if text is None:
        return {}
    try:
        raw = json.loads(text)
        if not isinstance(raw, dict) or any(type(bias) not in (int, float) for bias in raw.values()):
            raise ValueError("must be an object from token id to a number")
        return {int(token): float(bias) for token, bias in raw.items()}
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"--logit-bias is {text!r}: {error}", field="logit_bias") from error
