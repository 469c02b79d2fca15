"""The public gRPC service: messages to jobs and back, errors to statuses. Text becomes tokens here and nowhere else."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc

from baleen.clock import Clock
from baleen.errors import AlreadyRunning, BaleenError, InvalidRequest, UnknownName
from baleen.ids import RequestId, new_request_id
from baleen.sampling import MAX_SEED, SamplingParams
from baleen.telemetry import Log
from baleen.text.tokenizer import Tokenizer
from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from baleen.wire.errors import abort, wire_error
from baleen.wire.reports import finish_to_proto, logprobs_to_proto, prompt_logprobs_to_proto
from baleen.wire.sampling import sampling_from_proto
from baleen.wire.serving import metadata_of
from router.client_session import ClientSession, Outlet, Terms
from router.explanation import explanation_to_proto
from router.journal import log_refusal
from router.members import Members
from router.messages import Delta, Job
from router.policy.explain import Explainer
from router.proxy import Proxy
from router.record import Records

LONG_TEXT = 10_000
"""Characters from which on a text is tokenised beside the event loop."""

Context = grpc.aio.ServicerContext[Any, Any]


class CallOutlet:
    """The outlet of a call that carries one request."""

    def __init__(self, context: Context) -> None:
        self._write = context.write

    async def admitted(self, message: inference_pb2.Admitted) -> None:
        """Its first message."""
        await self._write(inference_pb2.GenerateResponse(admitted=message))

    async def delta(self, message: inference_pb2.Delta) -> None:
        """One more."""
        await self._write(inference_pb2.GenerateResponse(delta=message))


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """One router, as clients see it."""

    def __init__(
        self,
        proxy: Proxy,
        members: Members,
        explainer: Explainer,
        records: Records,
        tokenizer: Tokenizer | None,
        *,
        model_name: str,
        max_deadline_s: float,
        clock: Clock,
        log: Log,
    ) -> None:
        """max_deadline_s: of calls without a deadline, and the most of any."""
        self._proxy = proxy
        self._members = members
        self._explainer = explainer
        self._records = records
        self._tokenizer = tokenizer
        self._model_name = model_name
        self._max_deadline_s = max_deadline_s
        self._clock = clock
        self._log = log
        self._running: set[RequestId] = set()
        self._client_sessions: set[ClientSession] = set()
        self._ends_sessions = False

    async def Generate(self, request: inference_pb2.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        """Continue a prompt; see the proto file."""
        metadata = metadata_of(context)
        terms = Terms(
            tenant=metadata.get("x-tenant", ""),
            traceparent=metadata.get("traceparent", ""),
            remaining_s=context.time_remaining(),
        )
        try:
            await self._generate(request, terms, CallOutlet(context))
        except BaleenError as error:
            await abort(context, error)

    async def GenerateMany(  # type: ignore[override]
        self, request_iterator: AsyncIterator[inference_pb2.GenerateManyRequest], context: Context
    ) -> None:
        """Continue many prompts on one stream; see the proto file."""
        session = ClientSession(self._generate)
        self._client_sessions.add(session)
        if self._ends_sessions:
            session.leave()
        try:
            await session.run(request_iterator, context.write)
        except BaleenError as error:
            await abort(context, error)
        finally:
            self._client_sessions.discard(session)

    def end_sessions(self) -> None:
        """Let streams of many requests end after those that run, so that their clients open new ones elsewhere."""
        self._ends_sessions = True
        for session in self._client_sessions:
            session.leave()

    async def _generate(self, request: inference_pb2.GenerateRequest, terms: Terms, outlet: Outlet) -> None:
        """Serve one request. Raises BaleenError, and nothing else unless it is cancelled itself."""
        job: Job | None = None
        try:
            job = await self._job(request, terms)
            await self._serve(job, outlet)
        except BaleenError as error:
            if job is None:
                self._records.meters.refused(wire_error(type(error)).code.name)
                log_refusal(self._log, request.request_id, terms.traceparent, error)
            raise
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            # where not the call but something that it waited for was cancelled, the client waits for an answer
            self._log.error("request failed by a fault of the router", error=repr(error))
            raise BaleenError("internal error of the router; its log has more") from error

    async def _serve(self, job: Job, outlet: Outlet) -> None:
        if job.request_id in self._running:
            raise AlreadyRunning(f"request_id is {job.request_id!r}, which is running already")
        self._running.add(job.request_id)

        async def on_admitted() -> None:
            await outlet.admitted(inference_pb2.Admitted(request_id=job.request_id))

        async def emit(delta: Delta) -> None:
            await outlet.delta(delta_to_proto(delta, len(job.prompt)))

        try:
            await self._proxy.run(job, on_admitted, emit)
        finally:
            self._running.discard(job.request_id)

    async def _job(self, request: inference_pb2.GenerateRequest, terms: Terms) -> Job:
        self._check_model(request.model)
        sampling = sampling_from_proto(request.sampling)
        token_ids = await self._prompt(request)
        num_delivered = request.num_delivered
        if num_delivered:
            require_continuable(request, sampling)
        if sampling.seed is None:
            sampling = replace(sampling, seed=secrets.randbelow(MAX_SEED + 1))
        if sampling.stop and self._tokenizer is None:
            raise InvalidRequest(f"stop is {list(sampling.stop)!r}, but the model has no tokenizer", field="stop")
        remaining_s = self._max_deadline_s if terms.remaining_s is None else terms.remaining_s
        tenant = terms.tenant
        return Job(
            request_id=RequestId(request.request_id) if request.request_id else new_request_id(),
            prompt=token_ids[: len(token_ids) - num_delivered],
            sampling=sampling,
            deadline=self._clock.now() + min(self._max_deadline_s, remaining_s),
            wants_text=self._tokenizer is not None and not request.omit_text,
            priority=request.priority,
            tenant=tenant,
            # one tenant's salt must never equal another's
            cache_salt=f"{len(tenant)}:{tenant}:{request.cache_salt}" if tenant or request.cache_salt else "",
            first_token_within_s=request.first_token_within_s if request.HasField("first_token_within_s") else None,
            traceparent=terms.traceparent,
            delivered=token_ids[len(token_ids) - num_delivered :],
            model=request.fingerprint,
        )

    async def _prompt(self, request: inference_pb2.GenerateRequest) -> tuple[int, ...]:
        kind = request.WhichOneof("prompt")
        if kind == "text":
            token_ids = tuple(await self._encode(request.text, field="text"))
        elif kind == "token_ids":
            token_ids = tuple(request.token_ids.ids)
        else:
            raise InvalidRequest("prompt is absent, must be text or token_ids", field="prompt")
        if not token_ids:
            raise InvalidRequest(f"{kind} has 0 tokens, at least 1 is needed", field=kind)
        return token_ids

    async def _encode(self, text: str, *, field: str) -> list[int]:
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise InvalidRequest(f"{field} needs a tokenizer, the model has none: send token ids", field=field)
        if len(text) < LONG_TEXT:
            return tokenizer.encode(text)
        return await asyncio.to_thread(tokenizer.encode, text)

    def _check_model(self, name: str) -> None:
        if name not in ("", self._model_name):
            raise UnknownName(f"model is {name!r}, served is {self._model_name!r}")

    async def Tokenize(
        self, request: inference_pb2.TokenizeRequest, context: Context
    ) -> inference_pb2.TokenizeResponse:
        """The token ids of a text."""
        try:
            self._check_model(request.model)
            return inference_pb2.TokenizeResponse(token_ids=await self._encode(request.text, field="text"))
        except BaleenError as error:
            await abort(context, error)

    async def Detokenize(
        self, request: inference_pb2.DetokenizeRequest, context: Context
    ) -> inference_pb2.DetokenizeResponse:
        """The text of token ids."""
        try:
            self._check_model(request.model)
            if self._tokenizer is None:
                raise InvalidRequest("token_ids have no text: the model has no tokenizer", field="token_ids")
            return inference_pb2.DetokenizeResponse(text=self._tokenizer.decode(request.token_ids))
        except BaleenError as error:
            await abort(context, error)

    async def ListModels(
        self, request: inference_pb2.ListModelsRequest, context: Context
    ) -> inference_pb2.ListModelsResponse:
        """The one model, with what its ranks say of it; without limits while no rank is there."""
        model = inference_pb2.Model(id=self._model_name, has_tokenizer=self._tokenizer is not None)
        ranks = self._members.snapshot().ranks
        info = self._members.info(ranks[0].incarnation) if ranks else None
        if info is not None:
            model.max_context = info.max_context
            model.vocab_size = info.vocab_size
            model.fingerprint = info.model_fingerprint
            model.eos_token_ids.extend(info.eos_token_ids)
        return inference_pb2.ListModelsResponse(models=[model])

    async def Explain(self, request: inference_pb2.ExplainRequest, context: Context) -> inference_pb2.ExplainResponse:
        """How a recent request of this router went."""
        try:
            record = self._records.get(RequestId(request.request_id))
        except BaleenError as error:
            await abort(context, error)
        return explanation_to_proto(record, self._explainer, self._members)


def require_continuable(request: inference_pb2.GenerateRequest, sampling: SamplingParams) -> None:
    """Raise InvalidRequest unless a completion can go on after `num_delivered` of the request's tokens."""
    num_delivered, num_tokens = request.num_delivered, len(request.token_ids.ids)
    problem = ""
    if not request.HasField("token_ids"):
        problem = "the prompt is text: what was delivered is known by its token_ids"
    elif num_delivered >= num_tokens:
        problem = f"token_ids has {num_tokens} tokens, and at least one of them is the prompt"
    elif sampling.n != 1:
        problem = f"n is {sampling.n}, and each completion is continued alone"
    elif num_delivered >= sampling.max_tokens:
        problem = f"max_tokens is {sampling.max_tokens}: the completion has ended"
    elif sampling.seed is None and not sampling.greedy:
        problem = "seed is absent, without which nothing sampled can be continued"
    if problem:
        raise InvalidRequest(f"num_delivered is {num_delivered}, but {problem}", field="num_delivered")


def delta_to_proto(delta: Delta, num_prompt_tokens: int) -> inference_pb2.Delta:
    """What is new of one completion, or of the prompt; usage goes with the beginning and the end of a completion."""
    if delta.prompt is not None:
        return inference_pb2.Delta(prompt_logprobs=prompt_logprobs_to_proto(delta.prompt))
    message = inference_pb2.Delta(
        index=delta.index,
        text=delta.text or "",
        token_ids=[token.token_id for token in delta.tokens],
        logprobs=logprobs_to_proto(delta.tokens),
        finish_reason=finish_to_proto(delta.finish),
        detail=delta.detail,
    )
    if delta.tells_usage:
        usage = common_pb2.Usage(
            prompt_tokens=num_prompt_tokens,
            completion_tokens=delta.num_output_tokens,
            cached_tokens=delta.cached.total,
            cached_tokens_decode=delta.cached.decode,
            cached_tokens_prefill=delta.cached.prefill,
            cached_tokens_fetched=delta.cached.fetched,
        )
        message.usage.CopyFrom(usage)
        message.fingerprint = delta.model
    return message
