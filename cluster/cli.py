"""The command line: finds the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from baleen.errors import BaleenError

COMMANDS = {
    "up": ("cluster.commands.up", "start a cluster, and keep it until Ctrl-C or `baleen down`"),
    "apply": ("cluster.commands.apply", "bring a running cluster to what a changed cluster file says, group by group"),
    "status": ("cluster.commands.status", "groups and ranks of a cluster: blocks, queue, speed, progress"),
    "explain": ("cluster.commands.explain", "why a request went where it did, and how it ended"),
    "drain": ("cluster.commands.drain", "let a group finish and leave; a fresh one takes its place"),
    "down": ("cluster.commands.down", "end a cluster"),
    "check": ("cluster.commands.check", "what a cluster file would start, and every rule that it breaks"),
    "logs": ("cluster.commands.logs", "logs of the ranks and groups of a cluster"),
    "generate": ("cluster.commands.generate", "generate from prompts with a local group of ranks"),
    "eval": ("cluster.commands.eval", "held-out tasks through a running cluster"),
    "keys": ("cluster.commands.keys", "API keys of the gateway: limits, balances, usage"),
    "bench": ("cluster.commands.bench", "time of kernels against their floors, on this machine's GPU"),
    "checkpoint": ("cluster.commands.checkpoint", "make, inspect or verify a checkpoint"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    args = _parser(words).parse_args(words)
    try:
        return int(args.run(args))
    except BaleenError as error:
        sys.stderr.write(f"baleen: error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # whoever read our output has gone; nothing is left to say, and closing stdout would fail again
        sys.stdout = None
        return 128 + signal.SIGPIPE


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Only the command that was named is imported, since some import torch, which takes seconds."""
    parser = argparse.ArgumentParser(prog="baleen", description="Serve DeepSeek-V3.2.")
    parser.add_argument("--version", action="version", version=f"baleen {version('baleen')}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    named = next((word for word in words if not word.startswith("-")), None)
    for name, (module, about) in COMMANDS.items():
        if name == named:
            import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=about)
    return parser


if __name__ == "__main__":
    sys.exit(main())
