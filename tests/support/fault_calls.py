"""Requests of a fault trial: of every kind, each with its answer, its times, and what the fault-free run gave."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import Any

import grpc

from baleen.v1 import common_pb2, inference_pb2
from baleen.wire.errors import error_from_rpc
from tests.support.fault_cluster import FaultCluster, RouterReplica
from tests.support.router_client import Answer

PROMPT_TOKENS = 193
"""Three whole blocks and one token: what a prefill rank computes and moves, and what the decode rank adds."""

NUM_TOKENS = 32
DEADLINE_S = 40.0
LOGPROB_TOLERANCE = 1e-4


FORM = common_pb2.Constraint(kind=common_pb2.CONSTRAINT_KIND_REGEX, text="([a-z]{3}[0-9]{2} ){40}")


@dataclass(frozen=True)
class Kind:
    """A sort of request. Its prompt is always the same; trials differ by the cache salt, so that nothing is shared."""

    name: str
    sampling: dict[str, Any]

    @property
    def prompt(self) -> list[int]:
        """Token ids of no meaning."""
        first = 7 * len(self.name)
        return [20 + (first + place * place) % 250 for place in range(PROMPT_TOKENS)]


KINDS = [
    Kind("greedy", {"temperature": 0.0}),
    Kind("seeded", {"temperature": 1.0, "seed": 5, "top_p": 0.95}),
    Kind("two completions", {"temperature": 0.9, "seed": 11, "n": 2}),
    Kind("stop string", {"temperature": 1.0, "seed": 23}),
    Kind("log-probabilities", {"temperature": 0.0, "logprobs": 2}),
    # longer than an answer is
    Kind("in a form", {"temperature": 1.0, "seed": 31, "constraint": FORM}),
]

Expected = dict[int, tuple[Any, ...]]


def summary(answer: Answer) -> Expected:
    """What must be the same in every run, by completion."""
    return {
        index: (tuple(tokens), answer.text[index], answer.finish.get(index), answer.usage[index].completion_tokens)
        for index, tokens in answer.tokens.items()
        if index in answer.usage
    }


def logprobs(answer: Answer) -> list[float]:
    """All log-probabilities, in order of completion and place."""
    ordered = sorted(answer.deltas, key=lambda delta: delta.index)
    found: list[float] = []
    for delta in ordered:
        for place in delta.logprobs:
            found += [place.logprob, *(top.logprob for top in place.top)]
    return found


@dataclass(frozen=True)
class Reference:
    """The fault-free answers, and the stop text that cuts one of them short."""

    answers: dict[str, Expected]
    logprobs: list[float]
    stop: str


@dataclass(eq=False)
class Call:
    """One request of a client: on one router, or on the other once its own is gone."""

    kind: Kind
    request_id: str
    router: RouterReplica
    sampling: dict[str, Any]
    may_change_router: bool = False
    answers: list[Answer] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    sent_at: float = 0.0
    received: list[float] = field(default_factory=list)
    lost_router_at: float | None = None
    ended_at: float | None = None
    cancelled: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def answer(self) -> Answer:
        """Of the last try."""
        return self.answers[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens received, of the last try."""
        return sum(map(len, self.answer.tokens.values())) if self.answers else 0

    def start(self, cluster: FaultCluster) -> None:
        """Send it."""
        self.sent_at = time.monotonic()
        self.received.append(self.sent_at)
        self.task = asyncio.create_task(self._run(cluster))

    def cancel(self) -> None:
        """Go away, as a client does."""
        self.cancelled = True
        assert self.task is not None
        self.task.cancel()

    async def _run(self, cluster: FaultCluster) -> None:
        try:
            while True:
                error = await self._try(cluster)
                if error is None:
                    return
                self.errors.append(error)
                others = [router for router in cluster.routers if router is not self.router]
                if not (self.may_change_router and others and error.startswith("UNAVAILABLE")) or len(self.answers) > 3:
                    return
                self.lost_router_at = self.lost_router_at or time.monotonic()
                self.router = others[0]
                self.request_id += "-again"
        finally:
            self.ended_at = time.monotonic()
            cluster.changes.notify()

    async def _try(self, cluster: FaultCluster) -> str | None:
        answer = Answer()
        self.answers.append(answer)
        request = inference_pb2.GenerateRequest(
            request_id=self.request_id,
            cache_salt=self.request_id.removesuffix("-again"),
            sampling=common_pb2.SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True, **self.sampling),
        )
        request.token_ids.ids.extend(self.kind.prompt)
        left_s = max(0.1, DEADLINE_S - (time.monotonic() - self.sent_at))
        channel = self.router.channel
        if self.router.stub is None or channel is None:
            return "UNAVAILABLE: the router is not there"
        try:
            async for message in self.router.stub.Generate(request, timeout=left_s):
                self.received.append(time.monotonic())
                answer.take(message)
                cluster.changes.notify()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.CANCELLED and self.router.channel is not channel:
                # no router says this of itself: the channel was closed under the call, as below
                return "UNAVAILABLE: the channel was closed"
            return f"{error.code().name}: {type(error_from_rpc(error)).__name__}: {error.details()}"
        except asyncio.CancelledError:
            # a channel that is closed under a call cancels it, which is the loss of the router
            if self.cancelled:
                raise
            task = asyncio.current_task()
            assert task is not None
            return "UNAVAILABLE: the channel was closed"
        return None

    def pause_after(self, moment: float) -> float:
        """The longest silence that ended after `moment`, from the client's point of view."""
        pairs = zip(self.received, self.received[1:], strict=False)
        return max((later - earlier for earlier, later in pairs if later > moment), default=0.0)

    def fault(self) -> str:
        """What is wrong with its end; an empty text if nothing is."""
        if self.ended_at is None:
            return "has not ended"
        if self.ended_at > self.sent_at + DEADLINE_S + 2.0:
            return f"ended {self.ended_at - self.sent_at:.1f} s after it was sent"
        if self.errors and not (self.may_change_router and len(self.errors) < len(self.answers)):
            return f"failed: {self.errors[-1]}"
        return ""

    def difference(self, reference: Reference) -> str:
        """How the answer differs from that of the fault-free run; an empty text if it does not."""
        expected = reference.answers[self.kind.name]
        got = summary(self.answer)
        if got != expected:
            return f"{self.kind.name}: got {got}, expected {expected}"
        for earlier in self.answers[:-1]:
            for index, tokens in earlier.tokens.items():
                if tuple(tokens) != expected[index][0][: len(tokens)]:
                    return f"{self.kind.name}: the lost router had given {tokens}"
        if self.kind.name == "log-probabilities":
            found = logprobs(self.answer)
            if len(found) != len(reference.logprobs):
                return f"{len(found)} log-probabilities, expected {len(reference.logprobs)}"
            worst = max(abs(one - other) for one, other in zip(found, reference.logprobs, strict=True))
            if worst > LOGPROB_TOLERANCE:
                return f"a log-probability is off by {worst:.1e}"
        return ""


def new_calls(count: int, name: str, cluster: FaultCluster, reference: Reference | None) -> list[Call]:
    """So many requests of all kinds in turn, on all routers in turn."""
    calls = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        sampling = dict(kind.sampling)
        if kind.name == "stop string" and reference is not None:
            sampling["stop"] = [reference.stop]
        router = cluster.routers[number % len(cluster.routers)]
        calls.append(Call(kind, f"{name}-{number}", router, sampling))
    return calls


async def take_reference(cluster: FaultCluster) -> Reference:
    """Run every kind once without fault, one after the other; the stop text is taken from the middle of an answer."""
    answers: dict[str, Expected] = {}
    scores: list[float] = []
    stop = ""
    for call in new_calls(len(KINDS), "reference", cluster, None):
        call.start(cluster)
        assert call.task is not None
        await call.task
        assert not call.errors, call.errors
        if call.kind.name == "stop string":
            text = call.answer.text[0]
            middle = range(len(text) // 2, len(text))
            stop = next(text[at : at + 4] for at in middle if text.find(text[at : at + 4]) == at)
            call = Call(call.kind, "reference-stop", call.router, {**call.sampling, "stop": [stop]})
            call.start(cluster)
            assert call.task is not None
            await call.task
            assert call.answer.finish == {0: common_pb2.FINISH_REASON_STOP}, call.answer
        if call.kind.name == "in a form":
            assert re.match("([a-z]{3}[0-9]{2} ){5}", call.answer.text[0]), call.answer
        if call.kind.name == "log-probabilities":
            scores = logprobs(call.answer)
        answers[call.kind.name] = summary(call.answer)
    return Reference(answers, scores, stop)
