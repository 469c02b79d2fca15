"""`baleen drain POOL/GROUP`: lets a group finish its requests and leave; a fresh one takes its place."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from baleen.errors import ConfigError
from cluster.run_state import find_running
from cluster.status import drain_group


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command."""
    parser = subparsers.add_parser("drain", help="let a group finish and leave; a fresh one takes its place")
    parser.add_argument("group", metavar="POOL/GROUP", help="as `baleen status` shows it, for example decode/0")
    parser.add_argument("--name", default="default", metavar="NAME", help="of the cluster (default)")
    parser.add_argument("--timeout", type=float, metavar="S", help="for what runs (group.drain_timeout_s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tell every rank of the group; does not wait. Raises BaleenError if there is no such group."""
    if args.timeout is not None and not args.timeout >= 0:
        raise ConfigError(f"--timeout is {args.timeout:g}, must be at least 0")
    state = find_running(args.name)
    count = asyncio.run(
        drain_group(state.name, state.redis, args.group, "told to drain by an operator", args.timeout, tls=state.tls)
    )
    sys.stdout.write(f"{args.group}: {count} ranks take no new requests and leave when theirs have ended\n")
    return os.EX_OK
