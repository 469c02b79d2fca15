"""`baleen logs`: what the ranks, groups and routers of a cluster say, on whichever node."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from baleen.errors import ConfigError
from cluster.run_state import find_state

_POLL_S = 0.2


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command."""
    parser = subparsers.add_parser("logs", help="logs of the ranks and groups of a cluster")
    parser.add_argument("part", nargs="?", metavar="POOL[/GROUP[/RANK]]", help="(all)")
    parser.add_argument("--name", default="default", metavar="NAME", help="of the cluster (default)")
    parser.add_argument("--lines", type=int, default=20, metavar="N", help="newest lines of each log (20)")
    parser.add_argument("--follow", action="store_true", help="go on with what is written from now on")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the newest lines of each log. Raises ConfigError where there is none."""
    state = find_state(args.name).state
    directory = Path(state.directory) / "logs"
    prefix = (args.part or "").replace("/", "-")
    paths = sorted(path for path in directory.glob("*.log") if _belongs(path.stem, prefix))
    if not paths:
        present = ", ".join(sorted(path.stem.replace("-", "/") for path in directory.glob("*.log"))) or "none"
        raise ConfigError(f"no log of {args.part or 'any rank'} in {directory}; there are: {present}")
    places = {}
    for path in paths:
        text = path.read_bytes()
        _show(path, b"\n".join(text.splitlines()[-args.lines :] if args.lines else []))
        places[path] = len(text)
    while args.follow:
        for path, place in places.items():
            with path.open("rb") as file:
                file.seek(place)
                text = file.read()
            # a line that is still being written is shown when it is whole
            whole = text[: text.rfind(b"\n") + 1]
            _show(path, whole)
            places[path] = place + len(whole)
        time.sleep(_POLL_S)
    return os.EX_OK


def _belongs(stem: str, prefix: str) -> bool:
    return not prefix or stem == prefix or stem.startswith(f"{prefix}-")


def _show(path: Path, text: bytes) -> None:
    for line in text.decode(errors="replace").splitlines():
        sys.stdout.write(f"{path.stem}: {line}\n")
    sys.stdout.flush()
