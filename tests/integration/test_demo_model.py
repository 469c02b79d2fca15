"""The demo model that ships: its answers through a cluster are right, and its tokens those of transformers."""

import asyncio

import pytest
import torch

from baleen.demo import demo_checkpoint
from baleen.text.encoding_v32 import encode_messages
from baleen.v1 import inference_pb2, inference_pb2_grpc
from baleen.wire.channel import open_channel
from cluster.cli import main
from cluster.evaluation.instances import GRADED, bundled_instances, read_instances
from cluster.evaluation.over_grpc import OverGrpc
from cluster.evaluation.runner import evaluate
from tests.support.cluster_processes import GroupPlan, running_cluster
from tests.support.router_client import Caller, request
from tests.support.transformers_model import transformers_model

pytestmark = pytest.mark.slow

OF_EACH = 4
MAX_TOKENS = 100


@pytest.fixture(scope="module")
def instances():
    found = read_instances(bundled_instances())
    return [one for family in GRADED for one in [one for one in found if one.family == family][:OF_EACH]]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    groups = [
        GroupPlan(name="prefill", role="prefill", num_blocks=128),
        GroupPlan(name="decode", role="decode", ep=2, num_blocks=128),
    ]
    checkpoint = demo_checkpoint()
    with running_cluster(tmp_path_factory.mktemp("demo"), checkpoint, groups, model=str(checkpoint)) as cluster:
        yield cluster.address


def test_the_checkpoint_is_whole():
    assert main(["checkpoint", "verify", str(demo_checkpoint())]) == 0


def test_it_answers_rightly(address, instances):
    async def run():
        async with open_channel(address) as channel:
            return await evaluate(OverGrpc(channel, concurrency=4), instances)

    results = asyncio.run(run())
    assert sum(results.asked.values()) == OF_EACH * len(GRADED)
    # all of them where it was trained; another processor's rounding may cost one
    assert len(results.wrong) <= 1, [(answer.instance.expected, answer.text) for answer in results.wrong]
    assert results.ended == OF_EACH * len(GRADED)


def test_its_tokens_are_those_of_transformers(address, instances):
    async def ask(caller, one):
        text = encode_messages(one.messages, thinking=one.thinking)
        answer = await caller.generate(request(text, max_tokens=MAX_TOKENS))
        prompt = await caller.stub.Tokenize(inference_pb2.TokenizeRequest(text=text))
        return list(prompt.token_ids), answer.tokens[0]

    async def run():
        async with open_channel(address) as channel:
            caller = Caller(inference_pb2_grpc.InferenceServiceStub(channel), address)
            return await asyncio.gather(*(ask(caller, one) for one in instances))

    model = transformers_model(demo_checkpoint())
    for prompt, tokens in asyncio.run(run()):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + tokens[:-1]])).logits[0]
        assert logits[len(prompt) - 1 :].argmax(-1).tolist() == tokens
