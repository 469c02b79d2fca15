"""`baleen generate`: starts a group of ranks on this machine, generates, and shuts it down."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from baleen.blocks import blocks_for
from baleen.clock import SystemClock
from baleen.config import CacheConfig, EngineConfig, ModelConfig, RankConfig
from baleen.errors import ConfigError, InvalidRequest
from baleen.model_spec import ModelSpec, load_model_spec
from baleen.sampling import SamplingParams
from baleen.text.tokenizer import Tokenizer, load_tokenizer
from baleen.text.tokenizer_files import TOKENIZER_FILE
from cluster.commands import generate_input, generate_output
from cluster.commands.generate_output import InOrderPrinter, Printer, StreamPrinter, tell
from cluster.generation import Generation
from cluster.local_group import SpawnedGroup

MOST_BLOCKS = 1024
"""Largest cache that is chosen without --num-blocks, per rank: 65,536 tokens."""

INTERACTIVE_BLOCKS = 512


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command; `run` is a function of the arguments that returns the exit code."""
    parser = subparsers.add_parser("generate", help="generate from prompts with a local group of ranks")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="checkpoint directory")
    parser.add_argument("--ep", type=int, default=1, metavar="N", help="ranks that share the experts (1)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", metavar="TEXT", help="a prompt; may be repeated")
    source.add_argument("--prompt-ids", metavar="FILE", help="JSON list of token ids or of such lists; - for stdin")
    source.add_argument("--interactive", action="store_true", help="a prompt per line of stdin, until its end")
    parser.add_argument("--json", action="store_true", help="one JSON object per completion, in order")
    parser.add_argument("--priority", type=int, default=0, metavar="P", help="lower is more urgent (0)")
    parser.add_argument("--deadline", type=float, metavar="S", help="end each completion after so many seconds")
    _add_sampling(parser.add_argument_group("sampling", "greedy, unless flags say otherwise"))
    _add_engine(parser.add_argument_group("engine"))
    parser.set_defaults(run=run)


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-tokens", type=int, metavar="N", help="most new tokens (128, or what the model has room for)"
    )
    group.add_argument("--min-tokens", type=int, default=0, metavar="N", help="no end before so many new tokens (0)")
    group.add_argument(
        "--recommended", action="store_true", help="defaults from the checkpoint's generation_config.json, not greedy"
    )
    group.add_argument("--temperature", type=float, metavar="T", help="0 takes the most likely token (0)")
    group.add_argument("--top-k", type=int, metavar="K", help="0 is off (0)")
    group.add_argument("--top-p", type=float, metavar="P", help="1 is off (1)")
    group.add_argument("--min-p", type=float, default=0.0, metavar="P", help="0 is off (0)")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="1 is off (1)")
    group.add_argument("--presence-penalty", type=float, default=0.0, metavar="X", help="(0)")
    group.add_argument("--frequency-penalty", type=float, default=0.0, metavar="X", help="(0)")
    group.add_argument("--logit-bias", metavar="JSON", help="object from token id to a number added to its logit")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    group.add_argument("--stop-token-id", action="append", type=int, default=[], metavar="N", help="repeatable")
    group.add_argument("--ignore-eos", action="store_true", help="go on after the end-of-sequence token")
    group.add_argument("--logprobs", type=int, metavar="N", help="with --json: log-probabilities, and N best rivals")
    group.add_argument("--n", type=int, default=1, metavar="N", help="completions per prompt (1)")
    group.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same tokens (random)")


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of computing (float32)")
    group.add_argument(
        "--kernels", choices=("auto", "torch", "triton"), default="auto", help="triton where there is a GPU (auto)"
    )
    group.add_argument("--cache-dtype", choices=("float32", "bfloat16", "float8"), default="float32", help="(float32)")
    group.add_argument("--num-blocks", type=int, metavar="N", help="cache blocks of 64 tokens per rank (as needed)")
    group.add_argument("--max-batch-tokens", type=int, default=2048, metavar="N", help="tokens per step (2048)")
    group.add_argument("--max-chunk-tokens", type=int, default=2048, metavar="N", help="of one prompt per step (2048)")
    group.add_argument("--max-running", type=int, metavar="N", help="requests that run at once per rank (64)")
    group.add_argument("--no-prefix-cache", action="store_true", help="compute every prompt from its first token")
    group.add_argument("--attention", choices=("auto", "mha", "absorbed"), default="auto", help="(auto)")
    group.add_argument("--hadamard", action="store_true", help="rotate index queries and keys")


def run(args: argparse.Namespace) -> int:
    """Generate; the text goes to stdout, everything else to stderr. Raises BaleenError."""
    signal.signal(signal.SIGTERM, _exit_on_signal)
    signal.signal(signal.SIGHUP, _exit_on_signal)
    spec = load_model_spec(args.model)
    if args.ep < 1 or spec.num_experts % args.ep:
        raise ConfigError(f"--ep is {args.ep}, must divide the model's {spec.num_experts} experts")
    if args.deadline is not None and not args.deadline > 0:
        raise InvalidRequest(f"--deadline is {args.deadline}, must be above 0", field="deadline")
    tokenizer = load_tokenizer(args.model)
    prompts = [] if args.interactive else generate_input.read_prompts(args, tokenizer)
    sampling = _sampling(args, spec, prompts, tokenizer)
    generate_input.check_prompts(prompts, spec, max_tokens=sampling.max_tokens)
    config = _rank_config(args, prompts, sampling)
    session = _Session(args, spec, sampling, tokenizer)
    with SpawnedGroup(config, args.ep) as group:
        session.start(group)
        if args.interactive:
            session.serve_lines(group)
        else:
            session.generate(group, prompts)
    return os.EX_OK


class _Session:
    """One run of the command, after its arguments were found good."""

    def __init__(
        self, args: argparse.Namespace, spec: ModelSpec, sampling: SamplingParams, tokenizer: Tokenizer | None
    ) -> None:
        self._args = args
        self._spec = spec
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._clock = SystemClock()

    def start(self, group: SpawnedGroup) -> None:
        """Wait for the ranks and tell where the time went."""
        begin = self._clock.now()
        ready = group.wait_ready()
        tell(generate_output.startup_summary(ready[0], self._clock.now() - begin))

    def generate(self, group: SpawnedGroup, prompts: Sequence[Sequence[int]]) -> None:
        """One batch of prompts."""
        generation = Generation(
            group,
            prompts,
            self._sampling,
            tokenizer=self._tokenizer,
            clock=self._clock,
            priority=self._args.priority,
            deadline_s=self._args.deadline,
        )
        completions = generation.completions
        printer: Printer = StreamPrinter()
        if self._args.json or len(completions) > 1:
            printer = InOrderPrinter(completions, as_json=self._args.json)
        timing = generation.run(printer.text, printer.end)
        tell(generate_output.summary(completions, timing))

    def serve_lines(self, group: SpawnedGroup) -> None:
        """A prompt per line, until the end of stdin; a bad one is answered and the next is read."""
        on_terminal = sys.stdin.isatty()
        tell(f"ready: {self._args.model} on {group.world_size} rank(s); one prompt per line, end with Ctrl-D")
        while True:
            if on_terminal:
                sys.stderr.write("> ")
                sys.stderr.flush()
            line = sys.stdin.readline()
            if not line:
                return
            if not line.strip():
                continue
            try:
                prompt = generate_input.encode_prompt(line.rstrip("\n"), self._tokenizer, self._args.model)
                generate_input.check_prompts([prompt], self._spec, max_tokens=self._sampling.max_tokens)
                self.generate(group, [prompt])
            except InvalidRequest as error:
                tell(f"refused: {error}")


def _sampling(
    args: argparse.Namespace, spec: ModelSpec, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer | None
) -> SamplingParams:
    longest = max(map(len, prompts), default=0)
    recommended = generate_input.load_sampling_defaults(args.model) if args.recommended else None
    defaults = recommended or generate_input.SamplingDefaults()
    sampling = generate_input.read_sampling(args, defaults, room=spec.max_positions - longest)
    generate_input.check_token_ids("--stop-token-id", sampling.stop_token_ids, spec)
    generate_input.check_token_ids("--logit-bias", sampling.logit_bias, spec)
    if tokenizer is None and (sampling.stop or args.interactive):
        flag = "--interactive" if args.interactive else "--stop"
        raise ConfigError(f"{flag} needs a tokenizer, and {args.model} has no {TOKENIZER_FILE}")
    return sampling


def _rank_config(args: argparse.Namespace, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> RankConfig:
    max_running = args.max_running if args.max_running is not None else min(64, max(1, args.max_batch_tokens))
    # every rank computes at the same time, so they share the processors; a wish of the user's counts more
    share = max(1, len(os.sched_getaffinity(0)) // args.ep)
    num_threads = 0 if "OMP_NUM_THREADS" in os.environ else share
    return RankConfig(
        model=ModelConfig(
            path=str(args.model.absolute()),
            compute_dtype=args.dtype,
            attention_form=args.attention,
            kernels=args.kernels,
            hadamard=args.hadamard,
            num_threads=num_threads,
        ),
        cache=CacheConfig(
            dtype=args.cache_dtype,
            num_blocks=args.num_blocks if args.num_blocks is not None else _num_blocks(args, prompts, sampling),
            prefix_cache=not args.no_prefix_cache,
        ),
        engine=EngineConfig(
            max_batch_tokens=args.max_batch_tokens,
            max_chunk_tokens=args.max_chunk_tokens,
            max_running=max_running,
            max_waiting=max(EngineConfig().max_waiting, len(prompts) * sampling.n),
        ),
        # a rank's own words would only repeat what this command says; its progress bar is no log line
        log_level="off" if sys.stderr.isatty() else "info",
    )


def _num_blocks(args: argparse.Namespace, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> int:
    """Blocks for all requests of the busiest rank at once, within bounds; always enough for the longest request."""
    if args.interactive:
        return INTERACTIVE_BLOCKS
    needs = [blocks_for(len(prompt) + sampling.max_tokens) for prompt in prompts]
    busiest = max(sum(needs[rank :: args.ep]) for rank in range(args.ep)) * sampling.n
    # some more than that, so that an admission's reserve never makes a request wait
    return max(max(needs), min(MOST_BLOCKS, busiest + busiest // 50 + 1))


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    """As an exception, so that the group is shut down on the way out."""
    sys.exit(128 + number)
