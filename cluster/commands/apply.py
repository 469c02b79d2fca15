"""`baleen apply`: brings a running cluster to what a changed file says, group by group, while requests go on."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from baleen.config_file import to_dict
from baleen.errors import ConfigError
from cluster.commands.check import report_of
from cluster.commands.cluster_options import add_cluster_options, read_cluster
from cluster.control import ask
from cluster.run_state import find_running


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command."""
    parser = subparsers.add_parser("apply", help="bring a running cluster to what a changed cluster file says")
    parser.add_argument("--config", type=Path, metavar="FILE", help="cluster file (the cluster without one)")
    add_cluster_options(parser)
    parser.add_argument(
        "--afresh", action="store_true", help="replace every group, as for new weights in the same directory"
    )
    parser.add_argument(
        "--in-place",
        action="store_true",
        help="without room for a new group beside the old ones, let an old one go first",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Return once all pools are as wanted. Raises ConfigError on what cannot change or breaks a rule."""
    config = read_cluster(args, args.config)
    state = find_running(config.name)
    report = report_of(config, place=False)
    if report.violations:
        raise ConfigError("; ".join(report.violations))
    request = {"config": to_dict(config), "afresh": args.afresh, "in_place": args.in_place}
    ask(Path(state.directory), request, _say)
    sys.stdout.write(f"cluster {config.name} is as wanted\n")
    return os.EX_OK


def _say(text: str) -> None:
    sys.stderr.write(f"baleen: {text}\n")
    sys.stderr.flush()
