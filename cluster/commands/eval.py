"""`baleen eval`: what a served model can do, measured through its cluster."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from baleen.errors import ConfigError
from baleen.wire.channel import open_channel
from cluster.evaluation.instances import GRADED, TEXT, Instance, bundled_instances, read_instances
from cluster.evaluation.over_grpc import OverGrpc
from cluster.evaluation.over_http import OverHttp
from cluster.evaluation.runner import Results, evaluate

GOALS = {"arithmetic": 95.0, "tools": 95.0, "json": 90.0, "recall": 90.0, "end of turn": 99.0}
"""Percent that the demo model should reach."""

SHOWN = 5


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command; `run` is a function of the arguments that returns the exit code."""
    parser = subparsers.add_parser("eval", help="held-out tasks through a running cluster")
    suites = parser.add_subparsers(dest="suite", required=True, metavar="suite")
    demo = suites.add_parser("demo", help="what the demo model learnt: arithmetic, tools, JSON, recall, talk")
    demo.add_argument("--address", default="127.0.0.1:9000", metavar="HOST:PORT", help="of the router (127.0.0.1:9000)")
    demo.add_argument(
        "--http",
        metavar="URL",
        help="through a gateway, as OpenAI clients ask: http://127.0.0.1:8000/v1; key: BALEEN_API_KEY",
    )
    demo.add_argument("--model", default="deepseek-v3.2", metavar="NAME", help="with --http (deepseek-v3.2)")
    demo.add_argument("--instances", type=Path, metavar="FILE", help="JSON lines (those that ship with baleen)")
    demo.add_argument(
        "--only", action="append", choices=(*GRADED, TEXT), help="families to run; text is perplexity; repeatable"
    )
    demo.add_argument("--limit", type=int, metavar="N", help="at most N instances of each family")
    demo.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests at a time (16)")
    demo.add_argument("--show-wrong", action="store_true", help=f"on stderr, up to {SHOWN} wrong answers per family")
    demo.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    demo.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the instances and print the results. Raises BaleenError."""
    for name in ("limit", "concurrency"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}, must be at least 1")
    instances = read_instances(args.instances or bundled_instances())
    # perplexity needs log-probabilities of single tokens
    families = args.only or (GRADED if args.http else (*GRADED, TEXT))
    chosen = _choose(instances, families, args.limit)
    results = asyncio.run(_evaluate(args, chosen))
    if args.show_wrong:
        _show_wrong(results)
    sys.stdout.write(json.dumps(as_dict(results)) + "\n" if args.json else table(results))
    return os.EX_OK


def as_dict(results: Results) -> dict[str, Any]:
    """Results as JSON has them; percentages with two decimals."""
    rows = {name: {"right": right, "of": of, "percent": _percent(right, of)} for name, right, of in _rows(results)}
    return {"tasks": rows, "perplexity": results.perplexity, "text_tokens": results.text_tokens}


def table(results: Results) -> str:
    """Results as text."""
    lines = [f"{'task':<14}{'right':>7}{'of':>6}{'percent':>9}{'goal':>7}"]
    for name, right, of in _rows(results):
        goal = f"{GOALS[name]:g}" if name in GOALS else "-"
        lines.append(f"{name:<14}{right:>7}{of:>6}{_percent(right, of):>9.1f}{goal:>7}")
    for name, value in results.perplexity.items():
        lines.append(f"perplexity of {results.text_tokens} tokens, cache {name}: {value:.5f}")
    return "\n".join(lines) + "\n"


async def _evaluate(args: argparse.Namespace, instances: list[Instance]) -> Results:
    if args.http:
        key = os.environ.get("BALEEN_API_KEY", "")
        way = OverHttp(args.http, key=key, model=args.model, concurrency=args.concurrency)
        return await evaluate(way, instances)
    async with open_channel(args.address) as channel:
        return await evaluate(OverGrpc(channel, concurrency=args.concurrency), instances)


def _choose(instances: list[Instance], families: tuple[str, ...] | list[str], limit: int | None) -> list[Instance]:
    chosen = []
    for family in families:
        of_family = [instance for instance in instances if instance.family == family]
        chosen += of_family[:limit]
    return chosen


def _rows(results: Results) -> list[tuple[str, int, int]]:
    rows = [(family, results.right[family], asked) for family, asked in results.asked.items()]
    if rows:
        rows.append(("end of turn", results.ended, sum(results.asked.values())))
    return rows


def _percent(right: int, of: int) -> float:
    return round(100.0 * right / of, 2)


def _show_wrong(results: Results) -> None:
    shown: dict[str, int] = {}
    for answer in results.wrong:
        family = answer.instance.family
        shown[family] = shown.get(family, 0) + 1
        if shown[family] <= SHOWN:
            end = "" if answer.stopped else " (not ended)"
            expected = answer.instance.expected
            wanted = expected.content or [(call.name, call.arguments) for call in expected.tool_calls]
            sys.stderr.write(f"{family}: wanted {wanted!r}, got {answer.text!r}{end}\n")
