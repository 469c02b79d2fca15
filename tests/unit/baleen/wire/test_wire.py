"""Conversions between our objects and messages: what is sent is what arrives."""

import math
import struct
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.budget import Budget
from baleen.constraint import Constraint
from baleen.errors import InvalidRequest
from baleen.ids import Epoch, Incarnation, RequestId
from baleen.reports import FinishReason, Load, PromptLogprobs, RankInfo, RequestOutput, SampledToken
from baleen.sampling import SamplingParams
from baleen.v1 import common_pb2, worker_pb2
from baleen.wire.reports import (
    finish_from_proto,
    info_from_proto,
    info_to_proto,
    load_from_proto,
    load_to_proto,
    output_from_proto,
    output_to_proto,
    prompt_logprobs_from_proto,
    prompt_logprobs_to_proto,
)
from baleen.wire.sampling import sampling_from_proto, sampling_to_proto

tokens = st.integers(0, 2**31 - 1)
counts = st.integers(0, 10**9)
texts = st.text(st.characters(exclude_categories=["Cs"]))
singles = st.floats(allow_nan=False, allow_infinity=False, width=32)
samplings = st.builds(
    SamplingParams,
    max_tokens=st.integers(5, 10**6),
    min_tokens=st.integers(0, 5),
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 10**6),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0, 100, exclude_min=True),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100)),
    stop_token_ids=st.frozensets(tokens),
    stop=st.lists(texts.filter(bool), max_size=16).map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
    n=st.integers(1, 128),
    seed=st.none() | st.integers(0, 2**63 - 1),
    constraint=st.none()
    | st.builds(Constraint, kind=st.just("regex"), text=texts.filter(bool), after=texts, lenient=st.booleans()),
    budget=st.none()
    | st.builds(
        Budget, tokens=tokens, end=st.text("<a>é", min_size=1, max_size=64), unless=st.text("<b>", max_size=64)
    ),
)


@given(samplings)
def test_sampling_parameters_arrive_as_sent(sampling):
    message = common_pb2.SamplingParams.FromString(sampling_to_proto(sampling).SerializeToString())
    assert sampling_from_proto(message) == sampling


def test_every_sampling_parameter_has_its_field():
    """A new parameter that the wire does not carry fails here."""
    known = {field.name for field in common_pb2.SamplingParams.DESCRIPTOR.fields}
    assert known == {field.name for field in fields(SamplingParams)}


def test_absent_sampling_fields_have_our_defaults_and_zeros_count():
    assert sampling_from_proto(common_pb2.SamplingParams()) == SamplingParams()
    given_zero = sampling_from_proto(common_pb2.SamplingParams(temperature=0.0, logprobs=0, seed=0))
    assert (given_zero.temperature, given_zero.logprobs, given_zero.seed) == (0.0, 0, 0)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"n": 129}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": 21, "max_tokens": 0}, "prompt_logprobs"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {5: math.inf}}, "logit_bias"),
        ({"logit_bias": {5: math.nan}}, "logit_bias"),
    ],
)
def test_a_wrong_sampling_field_is_named(values, field):
    with pytest.raises(InvalidRequest) as caught:
        sampling_from_proto(common_pb2.SamplingParams(**values))
    assert caught.value.field == field


plain = st.builds(SampledToken, tokens)
scored = st.builds(SampledToken, tokens, singles, st.lists(st.tuples(tokens, singles), max_size=3).map(tuple))
outputs = st.builds(
    RequestOutput,
    request_id=texts.map(RequestId),
    index=counts,
    position=counts,
    tokens=(st.lists(plain, max_size=4) | st.lists(scored, max_size=4)).map(tuple),
    finish=st.none() | st.sampled_from(FinishReason),
    detail=texts,
    num_prompt_tokens=counts,
    num_cached_tokens=counts,
)


@given(outputs)
def test_outputs_arrive_as_sent(output):
    message = worker_pb2.RequestOutput.FromString(output_to_proto(output).SerializeToString())
    assert output_from_proto(message) == output


def test_parts_of_a_prompt_are_those_of_the_whole():
    whole = PromptLogprobs(5, [-1.0, -2.0, -3.0], [1, 2, 3, 4, 5, 6], [-0.5, -0.75, -1.0, -1.5, -2.0, -2.5])
    message = common_pb2.PromptLogprobs.FromString(prompt_logprobs_to_proto(whole).SerializeToString())
    arrived = prompt_logprobs_from_proto(message)
    assert (arrived.end, arrived.num_top) == (8, 2)
    assert arrived.part(6, 8) == PromptLogprobs(6, [-2.0, -3.0], [3, 4, 5, 6], [-1.0, -1.5, -2.0, -2.5])
    assert arrived.part(5, 8) == whole
    assert PromptLogprobs(5, [-1.0]).part(5, 6).num_top == 0


def test_logprobs_of_a_float32_model_lose_nothing():
    logprob = struct.unpack("f", struct.pack("f", -1.2345678))[0]
    output = RequestOutput(RequestId("a"), 0, 0, (SampledToken(1, logprob, ((2, logprob),)),), None, "", 1, 0)
    (token,) = output_from_proto(output_to_proto(output)).tokens
    assert token.logprob == logprob and token.top_logprobs == ((2, logprob),)


@given(
    st.builds(
        Load,
        free_blocks=counts,
        num_waiting=counts,
        num_running=counts,
        queued_tokens=counts,
        running_tokens=counts,
        prefill_tokens_per_s=singles,
        decode_tokens_per_s=singles,
        draining=st.booleans(),
    )
)
def test_the_load_arrives_as_sent(load):
    assert load_from_proto(load_to_proto(load)) == load


@pytest.mark.parametrize("role", ["prefill", "decode", "mixed"])
def test_facts_of_a_rank_arrive_as_sent(role):
    info = RankInfo(
        incarnation=Incarnation("i"),
        epoch=Epoch("e"),
        rank=1,
        world_size=2,
        role=role,
        pool="p",
        group="g",
        address="host:1",
        model_fingerprint="f",
        vocab_size=3,
        max_context=4,
        eos_token_ids=(5, 6),
        num_blocks=7,
        max_running=8,
        pid=9,
        transfer_address="host:2",
    )
    assert info_from_proto(info_to_proto(info)) == info


def test_an_end_that_this_version_does_not_know_is_still_an_end():
    assert finish_from_proto(77) is FinishReason.FAILED
    assert finish_from_proto(0) is None
