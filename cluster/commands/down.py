"""`baleen down`: ends a cluster that `baleen up` runs, and clears what one left that was killed."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import sys
from pathlib import Path

from baleen.errors import BaleenError
from cluster.foreground import temporary_root
from cluster.marked import end_marked
from cluster.run_state import FoundState, find_state

TIMEOUT_S = 120.0
PATIENCE_S = 5.0
"""How long the other processes of a killed cluster may take to notice it."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command."""
    parser = subparsers.add_parser("down", help="end a cluster; running requests may finish")
    parser.add_argument("--name", default="default", metavar="NAME", help="of the cluster (default)")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help=f"({TIMEOUT_S:g})")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Wait until it has gone. Raises BaleenError if it takes longer than the timeout, ConfigError if none runs."""
    found = find_state(args.name)
    if not found.alive:
        clear(found)
        sys.stdout.write(f"cluster {args.name} had ended without order; what it left is gone now\n")
        return os.EX_OK
    descriptor = os.pidfd_open(found.state.pid)
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        ended, _, _ = select.select([descriptor], [], [], args.timeout)
    finally:
        os.close(descriptor)
    if not ended:
        raise BaleenError(f"cluster {args.name} (process {found.state.pid}) has not ended within {args.timeout:g} s")
    sys.stdout.write(f"cluster {args.name} has ended\n")
    return os.EX_OK


def clear(found: FoundState) -> None:
    """End what is left of a cluster whose process died, and remove its files."""
    directory = Path(found.state.directory) if found.state.directory else None
    # the file may say anything: only a folder as `baleen up` makes it is removed
    if directory is not None and directory.parent == temporary_root() and directory.name.startswith("baleen-"):
        end_marked(directory, PATIENCE_S)
        shutil.rmtree(directory, ignore_errors=True)
    found.path.unlink(missing_ok=True)
