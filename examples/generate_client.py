"""A small client: sends one prompt to a router and prints what comes, token by token.

    python examples/generate_client.py "Once upon a time"
    python examples/generate_client.py --token-ids 17,4,92 --max-tokens 32

It needs grpcio and baleen's generated messages only.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import grpc

from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Generate text through a baleen router.")
    parser.add_argument("text", nargs="?", default="", help="the prompt")
    parser.add_argument("--token-ids", default="", help="the prompt as ids with commas between, instead of text")
    parser.add_argument("--address", default="127.0.0.1:9000", help="of the router")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 always takes the most likely token")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds until the request is given up")
    options = parser.parse_args()
    if bool(options.text) == bool(options.token_ids):
        parser.error("give either a text or --token-ids")
    return options


async def generate(options: argparse.Namespace) -> int:
    """Send the request, print the answer; returns the exit code."""
    request = inference_pb2.GenerateRequest(
        sampling=common_pb2.SamplingParams(max_tokens=options.max_tokens, temperature=options.temperature)
    )
    if options.text:
        request.text = options.text
    else:
        request.token_ids.ids.extend(int(token) for token in options.token_ids.split(","))
    async with grpc.aio.insecure_channel(options.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        try:
            async for response in stub.Generate(request, timeout=options.timeout, wait_for_ready=True):
                show(response, as_text=bool(options.text))
        except grpc.aio.AioRpcError as error:
            sys.stderr.write(f"\n{error.code().name}: {error.details()}\n")
            return 1
    return 0


def show(response: inference_pb2.GenerateResponse, *, as_text: bool) -> None:
    """Print one message of the stream."""
    if response.WhichOneof("event") == "admitted":
        sys.stderr.write(f"request {response.admitted.request_id}\n")
        return
    delta = response.delta
    sys.stdout.write(delta.text if as_text else "".join(f"{token} " for token in delta.token_ids))
    sys.stdout.flush()
    if delta.finish_reason:
        usage = delta.usage
        reason = common_pb2.FinishReason.Name(delta.finish_reason).removeprefix("FINISH_REASON_").lower()
        sys.stderr.write(
            f"\n{reason}: {usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached), "
            f"{usage.completion_tokens} new\n"
        )


if __name__ == "__main__":
    sys.exit(asyncio.run(generate(parse())))
