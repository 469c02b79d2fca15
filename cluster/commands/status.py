"""`baleen status`: pools, groups and ranks of a running cluster, as a table or as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time

from cluster.run_state import find_running
from cluster.status import cluster_status
from cluster.status_table import now_text, status_text

_CLEAR = "\x1b[H\x1b[2J"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command."""
    parser = subparsers.add_parser(
        "status", help="pools, groups and ranks of a cluster: blocks, queue, hit rate, speed"
    )
    parser.add_argument("--name", default="default", metavar="NAME", help="of the cluster (default)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--watch", type=float, nargs="?", const=1.0, metavar="S", help="again every S seconds (1)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the status. Raises ConfigError where no such cluster runs."""
    while True:
        status = asyncio.run(cluster_status(find_running(args.name)))
        if args.watch is not None and not args.json and sys.stdout.isatty():
            sys.stdout.write(f"{_CLEAR}{now_text()}\n")
        sys.stdout.write(json.dumps(status.as_dict()) + "\n" if args.json else status_text(status))
        sys.stdout.flush()
        if args.watch is None:
            return os.EX_OK
        time.sleep(args.watch)
