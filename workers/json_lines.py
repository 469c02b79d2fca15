"""The wire between a rank process and whoever started it: one JSON object per line, for every command and event.

Commands are checked field by field, since anyone may write them; events come from a rank of the same version.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from baleen.budget import Budget
from baleen.constraint import Constraint
from baleen.errors import BaleenError, InvalidRequest
from baleen.ids import Epoch, Incarnation, RequestId
from baleen.reports import Load, PromptLogprobs, PromptReport
from baleen.sampling import SamplingParams
from workers.engine.batch import FinishReason, RequestOutput, SampledToken
from workers.engine.messages import (
    Abort,
    Drain,
    Ended,
    Event,
    HealthQuery,
    HealthReport,
    LocalCommand,
    PrefillDone,
    Ready,
    Refused,
    StepReport,
    Submit,
)
from workers.json_fields import Fields

_FLAT_EVENTS: dict[str, type[Any]] = {
    "ready": Ready,
    "refused": Refused,
    "prefill_done": PrefillDone,
    "health": HealthReport,
    "ended": Ended,
}
_EVENT_NAMES = {kind: name for name, kind in _FLAT_EVENTS.items()}
_SAMPLING_FIELDS = tuple(field.name for field in fields(SamplingParams))


def encode_command(command: LocalCommand | HealthQuery, *, now: float) -> str:
    """One line, without its newline. Times leave as seconds from `now`, since clocks of two processes differ."""
    match command:
        case Submit():
            body: dict[str, Any] = {
                "type": "submit",
                "id": command.request_id,
                "token_ids": list(command.token_ids),
                "sampling": _encode_sampling(command.sampling),
                "priority": command.priority,
                "deadline_s": None if command.deadline is None else command.deadline - now,
                "cache_salt": command.cache_salt,
            }
        case Abort():
            body = {"type": "abort", "id": command.request_id, "index": command.index}
        case Drain():
            body = {"type": "drain", "reason": command.reason, "timeout_s": command.timeout_s}
        case HealthQuery():
            body = {"type": "health"}
    return json.dumps(body, separators=(",", ":"))


def decode_command(line: str | bytes, *, now: float) -> LocalCommand | HealthQuery | Refused:
    """The command in a line, or the answer that names what is wrong with it. Never raises for a bad line."""
    request_id: RequestId | None = None
    try:
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"not a JSON object: {error}", field="message") from error
        read = Fields(raw, "message")
        kind = read.text("type")
        if kind in ("submit", "abort"):
            request_id = RequestId(read.text("id"))
        return _command(kind, request_id, read, now)
    except InvalidRequest as error:
        return Refused(request_id, type(error).__name__, error.field, str(error))


def _command(kind: str, request_id: RequestId | None, read: Fields, now: float) -> LocalCommand | HealthQuery:
    if kind == "submit":
        assert request_id is not None
        read.only("type", "id", "token_ids", "sampling", "priority", "deadline_s", "cache_salt")
        deadline_s = read.optional_seconds("deadline_s")
        return Submit(
            request_id=request_id,
            token_ids=read.integers("token_ids"),
            sampling=_decode_sampling(read.raw.get("sampling", {})),
            priority=read.integer("priority", 0),
            deadline=None if deadline_s is None else now + deadline_s,
            cache_salt=read.text("cache_salt", ""),
        )
    if kind == "abort":
        assert request_id is not None
        read.only("type", "id", "index")
        return Abort(request_id, None if read.raw.get("index") is None else read.integer("index", 0))
    if kind == "drain":
        read.only("type", "reason", "timeout_s")
        return Drain(read.text("reason", "told to drain"), read.optional_seconds("timeout_s"))
    if kind == "health":
        read.only("type")
        return HealthQuery()
    raise InvalidRequest(f"type is {kind!r}, must be submit, abort, drain or health", field="type")


def encode_event(event: Event) -> str:
    """One line, without its newline."""
    if isinstance(event, StepReport):
        body: dict[str, Any] = {
            "type": "step",
            "step": event.step,
            "outputs": [_encode_output(output) for output in event.outputs],
            "load": _flat(event.load),
        }
        if event.prompts:
            body["prompts"] = [{"id": prompt.request_id, **_flat(prompt.logprobs)} for prompt in event.prompts]
    else:
        body = {"type": _EVENT_NAMES[type(event)], **_flat(event)}
    return json.dumps(body, separators=(",", ":"))


def decode_event(line: str | bytes) -> Event:
    """The event in a line. Raises BaleenError on anything else."""
    try:
        body = json.loads(line)
        kind = body.pop("type")
        if kind == "step":
            outputs = tuple(_decode_output(output) for output in body["outputs"])
            prompts = tuple(
                PromptReport(RequestId(prompt.pop("id")), PromptLogprobs(**prompt))
                for prompt in body.get("prompts", ())
            )
            return StepReport(body["step"], outputs, Load(**body["load"]), prompts)
        if kind == "ready":
            body["epoch"], body["incarnation"] = Epoch(body["epoch"]), Incarnation(body["incarnation"])
            body["eos_token_ids"] = tuple(body["eos_token_ids"])
            body["startup"] = tuple((str(part), float(seconds)) for part, seconds in body["startup"])
        event: Event = _FLAT_EVENTS[kind](**body)
        return event
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BaleenError(f"a rank wrote a line that is no event of this version: {line[:200]!r}") from error


def _flat(message: object) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in fields(message)}  # type: ignore[arg-type]


def _encode_output(output: RequestOutput) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": output.request_id,
        "index": output.index,
        "position": output.position,
        "token_ids": [token.token_id for token in output.tokens],
        "prompt_tokens": output.num_prompt_tokens,
        "cached_tokens": output.num_cached_tokens,
    }
    if any(token.logprob is not None for token in output.tokens):
        body["logprobs"] = [token.logprob for token in output.tokens]
    if any(token.top_logprobs for token in output.tokens):
        body["top_logprobs"] = [token.top_logprobs for token in output.tokens]
    if output.finish is not None:
        body["finish"] = output.finish.value
    if output.detail:
        body["detail"] = output.detail
    return body


def _decode_output(body: dict[str, Any]) -> RequestOutput:
    ids = body["token_ids"]
    logprobs = body.get("logprobs") or [None] * len(ids)
    tops = body.get("top_logprobs") or [()] * len(ids)
    finish = body.get("finish")
    return RequestOutput(
        request_id=RequestId(body["id"]),
        index=body["index"],
        position=body["position"],
        tokens=tuple(
            SampledToken(token, logprob, tuple((rival, value) for rival, value in top))
            for token, logprob, top in zip(ids, logprobs, tops, strict=True)
        ),
        finish=None if finish is None else FinishReason(finish),
        detail=body.get("detail", ""),
        num_prompt_tokens=body["prompt_tokens"],
        num_cached_tokens=body["cached_tokens"],
    )


def _encode_sampling(sampling: SamplingParams) -> dict[str, Any]:
    body = _flat(sampling)
    body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    body["stop_token_ids"] = sorted(sampling.stop_token_ids)
    body["constraint"] = None if sampling.constraint is None else _flat(sampling.constraint)
    body["budget"] = None if sampling.budget is None else _flat(sampling.budget)
    return body


def _decode_sampling(raw: object) -> SamplingParams:
    """Types of the containers are checked here; numbers and limits by SamplingParams itself."""
    read = Fields(raw, "sampling")
    read.only(*_SAMPLING_FIELDS)
    values = dict(read.raw)
    if "logit_bias" in values:
        values["logit_bias"] = read.numbers_by_token("logit_bias")
    if "stop_token_ids" in values:
        values["stop_token_ids"] = frozenset(read.integers("stop_token_ids"))
    if "stop" in values:
        values["stop"] = read.texts("stop")
    if not isinstance(values.get("ignore_eos", False), bool):
        read.refuse("ignore_eos", "true or false")
    if values.get("constraint") is not None:
        values["constraint"] = _decode_constraint(values["constraint"])
    if values.get("budget") is not None:
        values["budget"] = _decode_budget(values["budget"])
    return SamplingParams(**values)


def _decode_constraint(raw: object) -> Constraint:
    try:
        read = Fields(raw, "constraint")
        read.only("kind", "text", "after", "lenient")
        lenient = read.raw.get("lenient", False)
        if not isinstance(lenient, bool):
            read.refuse("lenient", "true or false")
        kind: Any = read.text("kind")
        return Constraint(kind=kind, text=read.text("text", ""), after=read.text("after", ""), lenient=lenient)
    except InvalidRequest as error:
        raise InvalidRequest(str(error), field="constraint") from error


def _decode_budget(raw: object) -> Budget:
    try:
        read = Fields(raw, "budget")
        read.only("tokens", "end", "unless")
        # without a number of tokens it is refused
        return Budget(tokens=read.integer("tokens", -1), end=read.text("end"), unless=read.text("unless", ""))
    except InvalidRequest as error:
        raise InvalidRequest(str(error), field="budget") from error
