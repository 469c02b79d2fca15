"""A router's side of the worker service, for tests: one session at a time in plain steps, every wait bounded."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from baleen.reports import FinishReason, Load, RequestOutput
from baleen.sampling import SamplingParams
from baleen.v1 import worker_pb2, worker_pb2_grpc
from baleen.wire.channel import open_channel
from baleen.wire.errors import error_from_failure
from baleen.wire.reports import load_from_proto, output_from_proto
from baleen.wire.sampling import sampling_to_proto

WAIT_S = 60.0


def async_test(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class SessionClient:
    """One session. `seen` are all messages so far, `info` what the rank said of itself, `load` its latest."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.seen: list[worker_pb2.SessionResponse] = []
        self.load: Load | None = None
        self.outputs: list[RequestOutput] = []

    async def send(self, **message: Any) -> None:
        """Send one message, for example submit=worker_pb2.Submit(...)."""
        await asyncio.wait_for(self._call.write(worker_pb2.SessionRequest(**message)), WAIT_S)

    async def submit(self, request_id: str, token_ids: list[int], **options: Any) -> None:
        """A greedy request that only its length ends, unless `sampling` options say otherwise."""
        own = {
            name: options.pop(name)
            for name in ("remaining_s", "num_delivered", "ticket", "cache_salt")
            if name in options
        }
        sampling = SamplingParams(**{"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **options})
        await self.send(
            submit=worker_pb2.Submit(
                request_id=request_id, token_ids=token_ids, sampling=sampling_to_proto(sampling), **own
            )
        )

    async def abort(self, request_id: str, index: int | None = None) -> None:
        """End one completion, or all."""
        await self.send(abort=worker_pb2.Abort(request_id=request_id, index=index))

    async def next(self) -> worker_pb2.SessionResponse | None:
        """The next message, None at the end of the stream. Raises AioRpcError if it broke."""
        response = await asyncio.wait_for(self._call.read(), WAIT_S)
        if not isinstance(response, worker_pb2.SessionResponse):
            return None
        self.seen.append(response)
        if response.HasField("step_report"):
            self.load = load_from_proto(response.step_report.load)
            self.outputs += map(output_from_proto, response.step_report.outputs)
        return response

    async def expect(self, kind: str) -> Any:
        """The next message of a kind, for example `refused`; others are noted on the way."""
        while (response := await self.next()) is not None:
            if response.HasField(kind):  # type: ignore[arg-type]
                return getattr(response, kind)
        raise AssertionError(f"the session ended without {kind}; seen {self.seen[-3:]}")

    async def refusal(self) -> Exception:
        """The error of the next refusal."""
        return error_from_failure((await self.expect("refused")).failure)

    async def expect_output(self, request_id: str) -> RequestOutput:
        """Wait for the next news of a request."""
        known = len(self.of(request_id))
        while len(self.of(request_id)) == known:
            await self.expect("step_report")
        return self.of(request_id)[-1]

    async def finish(self, request_id: str, index: int = 0) -> tuple[list[int], FinishReason]:
        """All tokens of a completion and how it ended; waits for the end."""
        while not (ends := [o.finish for o in self.of(request_id, index) if o.finish]):
            await self.expect("step_report")
        assert len(ends) == 1
        assert self.of(request_id, index)[-1].finish is ends[0]
        return self.tokens_of(request_id, index), ends[0]

    def of(self, request_id: str, index: int | None = None) -> list[RequestOutput]:
        """News so far."""
        return [o for o in self.outputs if o.request_id == request_id and index in (None, o.index)]

    def tokens_of(self, request_id: str, index: int = 0) -> list[int]:
        """Tokens so far; they must follow each other without a gap."""
        tokens: list[int] = []
        first = None
        for output in self.of(request_id, index):
            first = output.position if first is None else first
            assert output.position == first + len(tokens)
            tokens += [token.token_id for token in output.tokens]
        return tokens

    async def close(self) -> None:
        """Say that nothing more comes, and read to the end."""
        await self._call.done_writing()
        while await self.next() is not None:
            pass

    def drop(self) -> None:
        """Go away at once."""
        self._call.cancel()


class RankGrpcClient:
    """Calls to one rank."""

    def __init__(self, address: str) -> None:
        self.channel = open_channel(address)
        self.stub = worker_pb2_grpc.WorkerServiceStub(self.channel)
        self._health = health_pb2_grpc.HealthStub(self.channel)

    async def __aenter__(self) -> RankGrpcClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    @asynccontextmanager
    async def session(self, **metadata: str) -> AsyncIterator[SessionClient]:
        """An open session, dropped at the end of the block."""
        session = SessionClient(self.stub.Session(metadata=tuple(metadata.items())))
        try:
            await session.expect("opened")
            yield session
        finally:
            session.drop()

    async def info(self) -> worker_pb2.RankInfo:
        """Facts of this life of the rank."""
        return (await self.stub.GetInfo(worker_pb2.GetInfoRequest(), timeout=WAIT_S)).info

    async def health(self, service: str = "") -> str:
        """SERVING or NOT_SERVING."""
        response = await self._health.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    async def await_health(self, service: str, wanted: str) -> None:
        """Watch until a service has this state."""
        watch = self._health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
        async for response in watch:
            if health_pb2.HealthCheckResponse.ServingStatus.Name(response.status) == wanted:
                break
        watch.cancel()
