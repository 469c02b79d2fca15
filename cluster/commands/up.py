"""`baleen up`: a cluster in the foreground, until Ctrl-C or `baleen down`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from baleen.cluster_config import ClusterConfig
from baleen.errors import BaleenError
from cluster.commands.cluster_options import add_cluster_options, cluster_arguments, read_cluster
from cluster.foreground import Foreground, Stopped, is_stop
from cluster.service import serves_http


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command."""
    parser = subparsers.add_parser("up", help="start a cluster, and keep it until Ctrl-C or `baleen down`")
    parser.add_argument("--config", type=Path, metavar="FILE", help="cluster file (one for this machine)")
    add_cluster_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run until told to end; one line on stdout when requests are taken, everything else on stderr."""
    config = read_cluster(args, args.config)
    given = [str(args.config)] if args.config is not None else []
    # without a file and a model there is nothing of the user's to check
    words = given + cluster_arguments(args) if given or args.model is not None else []
    output = sys.stdout

    def on_ready() -> None:
        output.write(ready_line(config))
        output.flush()

    foreground = Foreground(config, check_arguments=words, say=_say)
    code = os.EX_OK
    try:
        foreground.run(on_ready)
    except (Stopped, SystemError) as error:
        if not is_stop(error):
            raise
        # asked twice, or before anything had started
        code = 128 + 2
    except BaleenError as error:
        if not foreground.abandoned_ray:
            raise
        _say(f"error: {error}")
        code = error.exit_code
    if foreground.abandoned_ray:
        # what Ray does when Python ends needs its head, and crashes without
        output.flush()
        os._exit(code)
    return code


def ready_line(config: ClusterConfig) -> str:
    """Where the cluster is, and how to call it."""
    ranks = sum(pool.least_groups * pool.ep for pool in config.pools)
    where = f"{config.router.host}:{config.router.port}"
    http = f"HTTP on http://{config.gateway.host}:{config.gateway.port}/v1, " if serves_http(config) else ""
    return (
        f"ready: gRPC on {where} (baleen.v1.InferenceService, reflection on), {http}{ranks} ranks; "
        f"baleen status --name {config.name} shows it, Ctrl-C ends it\n"
    )


def _say(text: str) -> None:
    sys.stderr.write(f"baleen: {text}\n")
    sys.stderr.flush()
