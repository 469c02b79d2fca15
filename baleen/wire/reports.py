"""What ranks report (`baleen.reports`) as messages, and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from baleen.config import Role
from baleen.ids import Epoch, Incarnation, RequestId
from baleen.reports import FinishReason, Load, PromptLogprobs, PromptReport, RankInfo, RequestOutput, SampledToken
from baleen.v1 import common_pb2, worker_pb2

_FINISH_TO_PROTO = {reason: common_pb2.FinishReason.Value(f"FINISH_REASON_{reason.name}") for reason in FinishReason}
_FINISH_FROM_PROTO: dict[int, FinishReason] = {number: reason for reason, number in _FINISH_TO_PROTO.items()}
_ROLES: tuple[Role, ...] = ("prefill", "decode", "mixed")
_ROLE_TO_PROTO = {role: common_pb2.Role.Value(f"ROLE_{role.upper()}") for role in _ROLES}
_ROLE_FROM_PROTO: dict[int, Role] = {number: role for role, number in _ROLE_TO_PROTO.items()}
_LOAD_FIELDS = tuple(field.name for field in fields(Load))
_INFO_FIELDS = tuple(field.name for field in fields(RankInfo))


def finish_to_proto(finish: FinishReason | None) -> common_pb2.FinishReason.ValueType:
    """FINISH_REASON_UNSPECIFIED stands for None."""
    return common_pb2.FINISH_REASON_UNSPECIFIED if finish is None else _FINISH_TO_PROTO[finish]


def finish_from_proto(finish: int) -> FinishReason | None:
    """None if not ended. A reason that this version does not know is a failure."""
    return (
        None if finish == common_pb2.FINISH_REASON_UNSPECIFIED else _FINISH_FROM_PROTO.get(finish, FinishReason.FAILED)
    )


def role_to_proto(role: Role) -> common_pb2.Role.ValueType:
    """Each role has its number."""
    return _ROLE_TO_PROTO[role]


def role_from_proto(role: int) -> Role:
    """A role that this version does not know is mixed: its ranks answer for themselves what they refuse."""
    return _ROLE_FROM_PROTO.get(role, "mixed")


def logprobs_to_proto(tokens: tuple[SampledToken, ...]) -> list[common_pb2.PositionLogprobs]:
    """One for each token, or none at all if none was asked for."""
    if not tokens or tokens[0].logprob is None:
        return []
    return [
        common_pb2.PositionLogprobs(
            logprob=0.0 if token.logprob is None else token.logprob,
            top=[common_pb2.TokenLogprob(token_id=rival, logprob=value) for rival, value in token.top_logprobs],
        )
        for token in tokens
    ]


def prompt_logprobs_to_proto(logprobs: PromptLogprobs) -> common_pb2.PromptLogprobs:
    """Of tokens of a prompt."""
    return common_pb2.PromptLogprobs(
        position=logprobs.position,
        logprobs=logprobs.logprobs,
        top_token_ids=logprobs.top_ids,
        top_logprobs=logprobs.top_logprobs,
    )


def prompt_logprobs_from_proto(message: common_pb2.PromptLogprobs) -> PromptLogprobs:
    """Of tokens of a prompt."""
    return PromptLogprobs(message.position, message.logprobs, message.top_token_ids, message.top_logprobs)


def prompt_report_to_proto(report: PromptReport) -> worker_pb2.PromptReport:
    """News of a prompt."""
    return worker_pb2.PromptReport(request_id=report.request_id, logprobs=prompt_logprobs_to_proto(report.logprobs))


def output_to_proto(output: RequestOutput) -> worker_pb2.RequestOutput:
    """News of one completion."""
    return worker_pb2.RequestOutput(
        request_id=output.request_id,
        index=output.index,
        position=output.position,
        token_ids=[token.token_id for token in output.tokens],
        logprobs=logprobs_to_proto(output.tokens),
        finish_reason=finish_to_proto(output.finish),
        detail=output.detail,
        num_prompt_tokens=output.num_prompt_tokens,
        num_cached_tokens=output.num_cached_tokens,
    )


def output_from_proto(message: worker_pb2.RequestOutput) -> RequestOutput:
    """News of one completion."""
    return RequestOutput(
        request_id=RequestId(message.request_id),
        index=message.index,
        position=message.position,
        tokens=tokens_from_proto(message),
        finish=finish_from_proto(message.finish_reason),
        detail=message.detail,
        num_prompt_tokens=message.num_prompt_tokens,
        num_cached_tokens=message.num_cached_tokens,
    )


def tokens_from_proto(message: worker_pb2.RequestOutput) -> tuple[SampledToken, ...]:
    """Tokens with their log-probabilities, where they were asked for."""
    if not message.logprobs:
        return tuple(SampledToken(token) for token in message.token_ids)
    return tuple(
        SampledToken(token, entry.logprob, tuple((rival.token_id, rival.logprob) for rival in entry.top))
        for token, entry in zip(message.token_ids, message.logprobs, strict=True)
    )


def load_to_proto(load: Load) -> worker_pb2.Load:
    """How busy a rank is."""
    values: dict[str, Any] = {name: getattr(load, name) for name in _LOAD_FIELDS}
    return worker_pb2.Load(**values)


def load_from_proto(message: worker_pb2.Load) -> Load:
    """How busy a rank is."""
    return Load(**{name: getattr(message, name) for name in _LOAD_FIELDS})


def info_to_proto(info: RankInfo) -> worker_pb2.RankInfo:
    """What never changes in one life of a rank."""
    values: dict[str, Any] = {name: getattr(info, name) for name in _INFO_FIELDS}
    values["role"] = role_to_proto(info.role)
    return worker_pb2.RankInfo(**values)


def info_from_proto(message: worker_pb2.RankInfo) -> RankInfo:
    """What never changes in one life of a rank."""
    values: dict[str, Any] = {name: getattr(message, name) for name in _INFO_FIELDS}
    values["role"] = role_from_proto(message.role)
    values["incarnation"], values["epoch"] = Incarnation(message.incarnation), Epoch(message.epoch)
    values["eos_token_ids"] = tuple(message.eos_token_ids)
    return RankInfo(**values)
