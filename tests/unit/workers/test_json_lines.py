"""The line codec: what is sent is what arrives, and nothing that arrives can break a rank."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.errors import BaleenError
from baleen.ids import Epoch, Incarnation, RequestId
from baleen.reports import Load, PromptLogprobs, PromptReport
from baleen.sampling import SamplingParams
from workers.engine.batch import FinishReason, RequestOutput, SampledToken
from workers.engine.messages import (
    Abort,
    Drain,
    Ended,
    HealthQuery,
    HealthReport,
    Ready,
    Refused,
    StepReport,
    Submit,
)
from workers.json_lines import decode_command, decode_event, encode_command, encode_event

ids = st.text(min_size=1).map(RequestId)
tokens = st.integers(0, 2**31 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
counts = st.integers(0, 10**9)
samplings = st.builds(
    SamplingParams,
    max_tokens=st.integers(5, 10**6),
    min_tokens=st.integers(0, 5),
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 10**6),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100)),
    stop_token_ids=st.frozensets(tokens),
    stop=st.lists(st.text(min_size=1), max_size=16).map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
    prompt_logprobs=st.none() | st.integers(0, 20),
    n=st.integers(1, 128),
    seed=st.none() | st.integers(0, 2**63 - 1),
)
commands = (
    st.builds(
        Submit,
        request_id=ids,
        token_ids=st.lists(tokens).map(tuple),
        sampling=samplings,
        priority=st.integers(-100, 100),
        deadline=st.none() | st.integers(0, 10**6).map(float),
        cache_salt=st.text(),
    )
    | st.builds(Abort, ids, st.none() | counts)
    | st.builds(Drain, st.text(), st.none() | st.floats(0, 1e6))
    | st.just(HealthQuery())
)
sampled = st.builds(
    SampledToken, tokens, st.none() | numbers, st.lists(st.tuples(tokens, numbers), max_size=3).map(tuple)
)
outputs = st.builds(
    RequestOutput,
    request_id=ids,
    index=counts,
    position=counts,
    tokens=st.lists(sampled, max_size=4).map(tuple),
    finish=st.none() | st.sampled_from(FinishReason),
    detail=st.text(),
    num_prompt_tokens=counts,
    num_cached_tokens=counts,
)
prompts = st.builds(
    PromptReport,
    ids,
    st.builds(PromptLogprobs, counts, st.lists(numbers, max_size=4), st.lists(tokens, max_size=4), st.lists(numbers)),
)
loads = st.builds(
    Load,
    free_blocks=counts,
    num_waiting=counts,
    num_running=counts,
    queued_tokens=counts,
    running_tokens=counts,
    prefill_tokens_per_s=numbers,
    decode_tokens_per_s=numbers,
    draining=st.booleans(),
)
events = (
    st.builds(
        StepReport, counts, st.lists(outputs, max_size=3).map(tuple), loads, st.lists(prompts, max_size=2).map(tuple)
    )
    | st.builds(
        Ready,
        rank=counts,
        world_size=counts,
        epoch=st.text().map(Epoch),
        incarnation=st.text().map(Incarnation),
        pid=counts,
        model_fingerprint=st.text(),
        vocab_size=counts,
        max_context=counts,
        eos_token_ids=st.lists(tokens).map(tuple),
        num_blocks=counts,
        address=st.text(),
        startup=st.lists(st.tuples(st.text(), numbers)).map(tuple),
    )
    | st.builds(Refused, st.none() | ids, st.text(), st.none() | st.text(), st.text())
    | st.builds(HealthReport, counts, counts, st.text(), numbers, st.none() | st.text())
    | st.builds(Ended, st.text())
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
known_names = st.sampled_from(
    ["id", "token_ids", "sampling", "priority", "deadline_s", "cache_salt", "index", "reason", "timeout_s"]
)


@given(commands, st.integers(0, 10**6).map(float))
def test_commands_arrive_as_they_were_sent(command, now):
    line = encode_command(command, now=now)
    assert "\n" not in line
    assert decode_command(line, now=now) == command
    assert decode_command(line.encode(), now=now) == command


@given(events)
def test_events_arrive_as_they_were_sent(event):
    line = encode_event(event)
    assert "\n" not in line
    assert decode_event(line.encode()) == event


def test_a_deadline_is_kept_as_a_time_left():
    sent = Submit(request_id=RequestId("a"), token_ids=(1,), sampling=SamplingParams(), deadline=105.0)
    received = decode_command(encode_command(sent, now=100.0), now=7.0)
    assert isinstance(received, Submit) and received.deadline == 12.0


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_answered(line):
    assert isinstance(decode_command(line, now=0.0), (Refused, HealthQuery, Drain))


@given(st.sampled_from(["submit", "abort", "drain", "health"]), st.dictionaries(known_names | st.text(), json_values))
def test_any_object_is_answered(kind, body):
    answer = decode_command(json.dumps({**body, "type": kind}), now=0.0)
    assert isinstance(answer, (Submit, Abort, Drain, HealthQuery, Refused))


@given(st.sampled_from([*SamplingParams.__slots__]), json_values)
def test_any_sampling_value_is_answered(name, value):
    body = {"type": "submit", "id": "a", "token_ids": [1], "sampling": {name: value}}
    answer = decode_command(json.dumps(body), now=0.0)
    assert isinstance(answer, Submit) or (answer.request_id == "a" and answer.field == name), answer


GOOD = {"type": "submit", "id": "a", "token_ids": [1, 2], "sampling": {"max_tokens": 3}}


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"token_ids": "1,2"}, "token_ids", 'token_ids is "1,2", must be a list of integers'),
        ({"token_ids": [1, 2.5]}, "token_ids", "must be a list of integers"),
        ({"token_ids": [True]}, "token_ids", "must be a list of integers"),
        ({"token_ids": None}, "token_ids", "token_ids is null"),
        ({"sampling": {"max_token": 3}}, "max_token", "max_token is not a known field; the nearest is max_tokens"),
        ({"sampling": {"max_tokens": 0}}, "max_tokens", "max_tokens is 0, must be an integer from 1"),
        ({"sampling": {"temperature": "hot"}}, "temperature", "temperature is 'hot'"),
        ({"sampling": {"temperature": 10**400}}, "temperature", "must be below 2**63"),
        ({"sampling": {"logit_bias": {"1": 10**400}}}, "logit_bias", "must be an object from token id to a number"),
        ({"sampling": {"logit_bias": {"9" * 5000: 1}}}, "logit_bias", "must be an object from token id to a number"),
        ({"deadline_s": 10**400}, "deadline_s", "must be below 2**63"),
        ({"sampling": {"logit_bias": {"x": 1}}}, "logit_bias", "must be an object from token id to a number"),
        ({"sampling": {"stop": "END"}}, "stop", 'stop is "END", must be a list of texts'),
        ({"sampling": {"ignore_eos": 1}}, "ignore_eos", "ignore_eos is 1, must be true or false"),
        ({"sampling": 5}, "sampling", "sampling is 5, must be a JSON object"),
        ({"priority": "high"}, "priority", 'priority is "high", must be an integer'),
        ({"deadline_s": "soon"}, "deadline_s", "must be a finite number of seconds"),
        ({"cache_salt": "\ud800"}, "cache_salt", "must be text"),
        ({"salt": "x"}, "salt", "salt is not a known field; the nearest is cache_salt"),
    ],
)
def test_the_answer_to_a_bad_submit_names_request_field_and_value(change, field, message):
    answer = decode_command(json.dumps({**GOOD, **change}), now=0.0)
    assert isinstance(answer, Refused)
    assert answer.request_id == "a" and answer.error == "InvalidRequest" and answer.field == field
    assert message in answer.message


@pytest.mark.parametrize(
    ("line", "field"),
    [("", "message"), ("[]", "message"), ("{}", "type"), ('{"type": "submit"}', "id"), ('{"type": "quit"}', "type")],
)
def test_the_answer_to_what_is_no_command_names_the_field(line, field):
    answer = decode_command(line, now=0.0)
    assert isinstance(answer, Refused) and answer.field == field and answer.request_id is None


@pytest.mark.parametrize(
    "line", [b"", b"[1]", b"{}", b'{"type":"step"}', b'{"type":"ended"}', b'{"type":"new"}', b"\xff"]
)
def test_a_line_that_is_no_event_is_named(line):
    with pytest.raises(BaleenError, match="no event of this version"):
        decode_event(line)
