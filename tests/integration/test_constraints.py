"""Answers in a form through real processes: a router with prefill and decode ranks, of which one dies; EP 2."""

import asyncio
import json
import re

import jsonschema
import pytest

from baleen.budget import Budget
from baleen.constraint import Constraint
from baleen.sampling import SamplingParams
from baleen.text.tokenizer import load_tokenizer
from baleen.v1 import common_pb2, inference_pb2
from baleen.wire.sampling import sampling_to_proto
from tests.support.rank_client import rank_processes
from tests.support.small_cluster import small_cluster
from tests.support.tiny_checkpoint import make_tiny

SCHEMA = {
    "type": "object",
    "properties": {
        "list": {"type": "array", "items": {"type": "integer", "minimum": -99, "maximum": 99}, "minItems": 25,
                 "maxItems": 30},
        "kind": {"enum": ["a", "bc", 7]},
    },
    "required": ["list", "kind"],
    "additionalProperties": False,
}  # fmt: skip
FORM = Constraint(kind="json_schema", text=json.dumps(SCHEMA))
THINKING = {
    "constraint": Constraint(kind="json_schema", text=FORM.text, after="</think>"),
    "budget": Budget(tokens=9, end="</think>"),
}
PROMPT = "Numbers, please. " * 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


def asking(constraint=FORM, *, request_id="", **sampling):
    params = SamplingParams(constraint=constraint, **{"max_tokens": 400, "seed": 3, **sampling})
    return inference_pb2.GenerateRequest(text=PROMPT, sampling=sampling_to_proto(params), request_id=request_id)


async def answers_of(stub, request, on_tokens=None):
    """Texts by index, once all have stopped by themselves."""
    texts, ended, number = {}, {}, 0
    call = stub.Generate(request, timeout=120)
    async for message in call:
        if message.WhichOneof("event") != "delta":
            continue
        delta = message.delta
        texts[delta.index] = texts.get(delta.index, "") + delta.text
        number += len(delta.token_ids)
        if delta.finish_reason:
            ended[delta.index] = delta.finish_reason
        if on_tokens is not None:
            await on_tokens(number)
    assert set(ended.values()) == {common_pb2.FINISH_REASON_STOP}, ended
    return texts


def require_kept(texts):
    for text in texts.values():
        thought, tag, answer = text.partition("</think>")
        jsonschema.validate(json.loads(answer), SCHEMA)
        # each token stands for a byte; what is none becomes a character of three
        assert tag and 9 <= len(thought.encode()) <= 3 * 12


def test_a_form_goes_with_its_request_from_rank_to_rank(checkpoint, tmp_path):
    async def scenario(cluster):
        async with cluster.client() as client:
            whole = await answers_of(client.stub, asking(**THINKING, n=2))
            require_kept(whole)
            assert len(set(whole.values())) == 2
            killed = []

            async def kill(number):
                """End the decode rank that works on the request; the other one goes on."""
                if number >= 20 and not killed:
                    decision = (await client.explain("moves")).decisions[-1]
                    (busy,) = (place for place in (1, 2) if f"decode/{place}" in decision.chosen)
                    killed.append(busy)
                    cluster.ranks[busy].kill()

            moved = await answers_of(client.stub, asking(**THINKING, n=2, request_id="moves"), kill)
            assert len((await client.explain("moves")).decisions) > 1
            assert killed and moved == whole
            with_regex = await answers_of(client.stub, asking(Constraint(kind="regex", text="[0-9]{3}-(ab|c)")))
            assert re.fullmatch("[0-9]{3}-(ab|c)", with_regex[0])

    with small_cluster(checkpoint, tmp_path, roles=("prefill", "decode", "decode")) as cluster:
        asyncio.run(scenario(cluster))


def test_two_ranks_of_a_group_keep_to_forms(checkpoint, tmp_path):
    tokenizer = load_tokenizer(checkpoint)
    sampling = {"max_tokens": 400, "seed": 5, "constraint": {"kind": "json_schema", "text": FORM.text}}
    with rank_processes(checkpoint, tmp_path, world_size=2) as ranks:
        for rank in ranks:
            rank.expect("ready")
        for place, rank in enumerate(ranks):
            rank.send(type="submit", id=f"r{place}", token_ids=tokenizer.encode(PROMPT), sampling=sampling)
            bad = sampling | {"constraint": {"kind": "regex", "text": "("}}
            rank.send(type="submit", id="bad", token_ids=[5], sampling=bad)
        for place, rank in enumerate(ranks):
            assert rank.expect_finish(f"r{place}")["finish"] == "stop"
            text = tokenizer.decode(rank.tokens_of(f"r{place}")[:-1])
            jsonschema.validate(json.loads(text), SCHEMA)
            refused = [event for event in rank.events if event["type"] == "refused"]
            assert [(event["request_id"], event["field"]) for event in refused] == [("bad", "constraint.text")]


def test_a_rank_without_a_tokenizer_refuses_forms(tmp_path):
    checkpoint = make_tiny(tmp_path / "tiny", tokenizer=None)
    with rank_processes(checkpoint, tmp_path) as (rank,):
        rank.send(type="submit", id="r", token_ids=[5], sampling={"constraint": {"kind": "json_object"}})
        refused = rank.expect("refused")
        assert refused["field"] == "constraint" and "has none" in refused["message"]
