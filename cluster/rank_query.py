"""Asking a rank over gRPC how it is: its load and the progress of its step loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc.aio

from baleen.reports import Load
from baleen.tls_config import TlsConfig
from baleen.v1 import worker_pb2, worker_pb2_grpc
from baleen.wire.channel import open_channel
from baleen.wire.reports import load_from_proto

ASK_TIMEOUT_S = 2.0
"""How long one rank may take to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAnswer:
    """load: None before its first step. step, phase, seconds_in_phase: of its step loop.

    error: why it gave no answer, or that its epoch is over; else None.
    """

    load: Load | None = None
    step: int | None = None
    phase: str = ""
    seconds_in_phase: float = 0.0
    error: str | None = None


async def ask_rank(address: str, *, tls: TlsConfig | None = None) -> RankAnswer:
    """Ask the rank at `address`; what goes wrong stands in the answer."""
    async with open_channel(address, tls=tls) as channel:
        stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
        # without an iterator of requests, they are written one by one
        call = stub.Session()
        load: Load | None = None
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                await call.write(worker_pb2.SessionRequest(health_query=worker_pb2.HealthQuery()))
                # the load, if there has been a step, comes before the answer
                while isinstance(response := await call.read(), worker_pb2.SessionResponse):
                    if response.HasField("step_report"):
                        load = load_from_proto(response.step_report.load)
                    if response.HasField("health_report"):
                        health = response.health_report
                        return RankAnswer(
                            load=load,
                            step=health.step,
                            phase=health.phase,
                            seconds_in_phase=health.seconds_in_phase,
                            error=health.ended if health.HasField("ended") else None,
                        )
                    if response.HasField("ended"):
                        return RankAnswer(load=load, error=response.ended.cause)
        except grpc.aio.AioRpcError as error:
            return RankAnswer(error=error.details() or error.code().name)
        except TimeoutError:
            return RankAnswer(error=f"no answer within {ASK_TIMEOUT_S:g} s")
        finally:
            call.cancel()
    return RankAnswer(load=load, error="the session ended without an answer")
