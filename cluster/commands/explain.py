"""`baleen explain ID`: why a request went where it did, what else there was to choose, and how it ended."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

import grpc.aio
from google.protobuf.json_format import MessageToJson

from baleen.errors import BaleenError, UnknownName
from baleen.v1 import inference_pb2, inference_pb2_grpc
from baleen.wire.channel import open_channel
from baleen.wire.reports import role_from_proto
from cluster.rank_query import ASK_TIMEOUT_S
from cluster.run_state import find_running
from cluster.status_table import aligned


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Mount the command."""
    parser = subparsers.add_parser("explain", help="why a request went where it did, and how it ended")
    parser.add_argument("request", metavar="ID", help="of the request, as in logs and in x-request-id")
    parser.add_argument("--name", default="default", metavar="NAME", help="of the cluster (default)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the story. Raises UnknownName if no router has it, BaleenError if one that might gives no answer."""
    answer = asyncio.run(ask_routers(find_running(args.name).routers, args.request))
    if args.json:
        sys.stdout.write(MessageToJson(answer, preserving_proto_field_name=True, indent=None) + "\n")
    else:
        sys.stdout.write(story(answer))
    return os.EX_OK


async def ask_routers(addresses: Sequence[str], request_id: str) -> inference_pb2.ExplainResponse:
    """What the router that served the request says of it; each keeps the stories of its own."""
    answers = await asyncio.gather(*(_ask(address, request_id) for address in addresses))
    found = next((answer for answer in answers if isinstance(answer, inference_pb2.ExplainResponse)), None)
    if found is not None:
        return found
    silent = [f"{address}: {answer}" for address, answer in zip(addresses, answers, strict=True) if answer]
    if silent:
        raise BaleenError(f"request {request_id!r} is known to no router that answers; {'; '.join(silent)}")
    raise UnknownName(f"request {request_id!r} is known to no router; each keeps only its latest")


async def _ask(address: str, request_id: str) -> inference_pb2.ExplainResponse | str:
    """The story; an empty text if the router has none, another one if it gives no answer."""
    async with open_channel(address) as channel:
        try:
            return await inference_pb2_grpc.InferenceServiceStub(channel).Explain(
                inference_pb2.ExplainRequest(request_id=request_id), timeout=ASK_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return ""
            return error.details() or error.code().name


def story(answer: inference_pb2.ExplainResponse) -> str:
    """For reading: each choice with its candidates, what happened and when, the end."""
    lines = [f"request {answer.request_id}: {answer.prompt_tokens} prompt tokens"]
    for decision in answer.decisions:
        lines += ["", f"{role_from_proto(decision.role)}: {decision.chosen or 'none'} by {decision.policy}"]
        if decision.note:
            lines.append(f"  {decision.note}")
        lines += [f"  {line}" for line in _candidates(decision)]
        others = (f"{policy} {chosen or 'none'}" for policy, chosen in sorted(decision.alternatives.items()))
        if text := ", ".join(others):
            lines.append(f"  other policies: {text}")
    lines += ["", *(f"{milestone.at_s:9.3f} s  {milestone.event}" for milestone in answer.milestones)]
    lines.append(f"outcome: {answer.outcome or 'it runs'}")
    return "\n".join(lines) + "\n"


def _candidates(decision: inference_pb2.Decision) -> list[str]:
    names = sorted({name for candidate in decision.candidates for name in candidate.terms})
    rows: list[Sequence[str]] = [("rank", "cost", *(name.removesuffix("_s") for name in names), "cached tok", "")]
    for candidate in decision.candidates:
        terms = [f"{candidate.terms.get(name, 0.0):.4f}" for name in names]
        mark = "chosen" if candidate.rank == decision.chosen else candidate.excluded
        rows.append((candidate.rank, f"{candidate.cost_s:.4f}", *terms, str(candidate.cached_tokens), mark))
    return aligned(rows, {"rank", ""})
