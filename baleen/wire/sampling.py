"""SamplingParams as a message, and back."""

from __future__ import annotations

from typing import Any, cast, get_args

from baleen.budget import Budget
from baleen.constraint import Constraint, ConstraintKind
from baleen.errors import InvalidRequest
from baleen.sampling import SamplingParams
from baleen.v1 import common_pb2

_OPTIONAL = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "ignore_eos",
    "logprobs",
    "n",
    "seed",
    "prompt_logprobs",
)

_KINDS: dict[ConstraintKind, common_pb2.ConstraintKind.ValueType] = {
    kind: common_pb2.ConstraintKind.Value(f"CONSTRAINT_KIND_{kind.upper()}") for kind in get_args(ConstraintKind)
}
_KINDS_FROM_PROTO: dict[int, ConstraintKind] = {number: kind for kind, number in _KINDS.items()}


def sampling_to_proto(sampling: SamplingParams) -> common_pb2.SamplingParams:
    """Every field is set, so that both ends mean the same whatever their defaults are."""
    values: dict[str, Any] = {name: getattr(sampling, name) for name in _OPTIONAL}
    return common_pb2.SamplingParams(
        **values,
        logit_bias=dict(sampling.logit_bias),
        stop_token_ids=sorted(sampling.stop_token_ids),
        stop=sampling.stop,
        constraint=None if sampling.constraint is None else _constraint_to_proto(sampling.constraint),
        budget=None if sampling.budget is None else _budget_to_proto(sampling.budget),
    )


def sampling_from_proto(message: common_pb2.SamplingParams) -> SamplingParams:
    """What is absent keeps the default of SamplingParams. Raises InvalidRequest that names field, value and limit."""
    values = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(cast(Any, name))}
    if message.logit_bias:
        values["logit_bias"] = dict(message.logit_bias)
    if message.HasField("constraint"):
        values["constraint"] = _constraint_from_proto(message.constraint)
    if message.HasField("budget"):
        budget = message.budget
        values["budget"] = Budget(tokens=budget.tokens, end=budget.end, unless=budget.unless)
    return SamplingParams(**values, stop_token_ids=frozenset(message.stop_token_ids), stop=tuple(message.stop))


def _constraint_to_proto(constraint: Constraint) -> common_pb2.Constraint:
    return common_pb2.Constraint(
        kind=_KINDS[constraint.kind], text=constraint.text, after=constraint.after, lenient=constraint.lenient
    )


def _budget_to_proto(budget: Budget) -> common_pb2.Budget:
    return common_pb2.Budget(tokens=budget.tokens, end=budget.end, unless=budget.unless)


def _constraint_from_proto(message: common_pb2.Constraint) -> Constraint:
    kind = _KINDS_FROM_PROTO.get(message.kind)
    if kind is None:
        problem = f"constraint.kind is {message.kind}, must be one of {', '.join(map(str, _KINDS_FROM_PROTO))}"
        raise InvalidRequest(problem, field="constraint.kind")
    return Constraint(kind=kind, text=message.text, after=message.after, lenient=message.lenient)
