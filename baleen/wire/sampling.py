"""SamplingParams as a message, and back."""

from __future__ import annotations

from typing import Any, cast

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
)


def sampling_to_proto(sampling: SamplingParams) -> common_pb2.SamplingParams:
    """Every field is set, so that both ends mean the same whatever their defaults are."""
    values: dict[str, Any] = {name: getattr(sampling, name) for name in _OPTIONAL}
    return common_pb2.SamplingParams(
        **values,
        logit_bias=dict(sampling.logit_bias),
        stop_token_ids=sorted(sampling.stop_token_ids),
        stop=sampling.stop,
    )


def sampling_from_proto(message: common_pb2.SamplingParams) -> SamplingParams:
    """What is absent keeps the default of SamplingParams. Raises InvalidRequest that names field, value and limit."""
    values = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(cast(Any, name))}
    if message.logit_bias:
        values["logit_bias"] = dict(message.logit_bias)
    return SamplingParams(**values, stop_token_ids=frozenset(message.stop_token_ids), stop=tuple(message.stop))
