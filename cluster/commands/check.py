"""`baleen check`: what a cluster file would start, and every rule that it breaks."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from baleen.cluster_config import ClusterConfig
from baleen.config import ModelConfig
from baleen.demo import demo_checkpoint
from baleen.errors import ConfigError
from baleen.model_spec import load_model_spec
from cluster.check import CheckReport, check
from cluster.commands.cluster_options import add_cluster_options, read_cluster
from cluster.nodes import this_machine


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command."""
    parser = subparsers.add_parser("check", help="what a cluster file would start, and every rule that it breaks")
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="cluster file (the cluster without one)")
    add_cluster_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; exit code 2 if a rule is violated. Raises ConfigError on a file that cannot be read."""
    report = report_of(read_cluster(args, args.file), place=True)
    sys.stdout.write(report.text())
    return ConfigError.exit_code if report.violations else os.EX_OK


def report_of(config: ClusterConfig, *, place: bool) -> CheckReport:
    """The report. place: whether it is to find room for everything on this machine, where no other Ray is named."""
    model = config.model or ModelConfig(path=str(demo_checkpoint()))
    spec = load_model_spec(Path(model.path))
    return check(config, model, spec, [this_machine()] if place and not config.ray.address else None)
