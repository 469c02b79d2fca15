"""Options that say which cluster is meant, for every command that starts or checks one."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from baleen.cluster_config import ClusterConfig
from baleen.cluster_file import load_cluster_config
from baleen.config import ModelConfig
from baleen.errors import ConfigError


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """--model, --name, --host, --port and --http-port, which go before what the file says."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="checkpoint (the demo model)")
    parser.add_argument("--name", metavar="NAME", help="of the cluster (default)")
    parser.add_argument("--host", help="address of the router (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port of the router (9000)")
    parser.add_argument("--http-port", type=int, help="port of the gateway (8000)")


def read_cluster(args: argparse.Namespace, file: Path | None) -> ClusterConfig:
    """The configuration that file and options describe. Raises ConfigError."""
    config = load_cluster_config(file) if file is not None else ClusterConfig()
    if args.model is not None:
        path = str(args.model.absolute())
        config = replace(
            config, model=ModelConfig(path=path) if config.model is None else replace(config.model, path=path)
        )
    asked = {name: getattr(args, name) for name in ("host", "port") if getattr(args, name) is not None}
    config = replace(config, router=replace(config.router, **asked))
    if args.http_port is not None:
        config = replace(config, gateway=replace(config.gateway, port=args.http_port))
    config = replace(config, name=args.name) if args.name is not None else config
    if config.model is not None and not Path(config.model.path).is_dir():
        raise ConfigError(f"model.path is {config.model.path}, which is no directory")
    return config


def cluster_arguments(args: argparse.Namespace) -> list[str]:
    """The same options as words, for another command."""
    words = []
    for name in ("model", "name", "host", "port", "http_port"):
        if getattr(args, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return words
