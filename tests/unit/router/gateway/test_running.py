"""What a gateway asks for when routers are lost: the rest of each answer, under new names, and not for ever."""

import asyncio

import pytest

from baleen.errors import NotReady, QueueFull
from baleen.sampling import SamplingParams
from baleen.seeds import completion_seed
from baleen.telemetry import Log
from baleen.text.tokenizer import Tokenizer
from baleen.v1 import common_pb2, inference_pb2
from router.gateway.answer import Answer
from router.gateway.ask import Ask
from router.gateway.line import RouterLost
from router.gateway.running import MOST_LOST, Running
from tests.support.tiny_tokenizer import tiny_tokenizer

PROMPT = [5, 6, 7]
LENGTH = common_pb2.FINISH_REASON_LENGTH


def token(token_id, index=0, *, finish=False, cached=None):
    usage = None if cached is None else common_pb2.Usage(cached_tokens=cached)
    return inference_pb2.Delta(
        index=index,
        token_ids=[token_id],
        usage=usage,
        fingerprint="" if cached is None else "ab",
        finish_reason=LENGTH if finish else 0,
    )


class Strand:
    """news: lists of deltas, and what it fails with. refusal: what admission fails with."""

    def __init__(self, news=(), refusal=None):
        self._news = list(news)
        self._refusal = refusal
        self.closed = False

    async def admitted(self):
        # others have their turn
        await asyncio.sleep(0)
        if self._refusal is not None:
            raise self._refusal

    async def deltas(self):
        news = self._news.pop(0) if self._news else []
        if isinstance(news, Exception):
            raise news
        return news

    def close(self):
        self.closed = True


class Routers:
    """All of them, and the link to the one that there is: it answers with the strands of a script. asked: requests."""

    def __init__(self, script):
        self._script = list(script)
        self.log = Log("off")
        self.num_lost = 0
        self.asked = []
        self.line, self.address = self, "here"

    def pick(self):
        return self

    async def one(self, refused, *, timeout_s):
        assert refused == {self} and 0 < timeout_s <= 30.0
        refused.clear()
        return self

    def start(self, request, **terms):
        self.asked.append(request)
        return self._script.pop(0)


def lost():
    return RouterLost("gone")


def outcome(script, **sampling):
    """The routers, the usage, and the tokens of each answer."""

    async def run():
        ask = Ask(model="", prompt=PROMPT, sampling=SamplingParams(max_tokens=20, **sampling), thinking=None)
        answers = [Answer(ask, None, Tokenizer(tiny_tokenizer()), [1]) for _ in range(ask.sampling.n)]
        routers = Routers(script)
        one = Running(routers, ask, answers, request_id="r", tenant="t", traceparent="", deadline_s=60.0)
        got = {}
        try:
            async for pieces in one.pieces():
                for piece in pieces:
                    got.setdefault(piece.index, []).extend(piece.token_ids)
        finally:
            one.close()
        return routers, one.usage, got

    return asyncio.run(asyncio.wait_for(run(), 30))


def test_the_rest_of_one_answer():
    begun = Strand([[token(8, cached=2)], [token(9)], lost()])
    routers, usage, got = outcome([begun, Strand([[token(10, finish=True, cached=3)]])])
    first, rest = routers.asked
    assert first.request_id == "r" and first.sampling.HasField("seed") and not first.num_delivered
    assert rest.request_id == "r.1" and rest.sampling.seed == first.sampling.seed
    assert (list(rest.token_ids.ids), rest.num_delivered, rest.fingerprint) == ([*PROMPT, 8, 9], 2, "ab")
    assert got == {0: [8, 9, 10]} and usage[:3] == (3, 2, 3) and routers.num_lost == 1


def test_each_of_several_answers_goes_on_alone_as_often_as_one_would():
    begun = Strand([[token(index, index) for index in range(3)], [token(9, 0, finish=True)], lost()])
    again = [Strand([[token(20)], lost()]) for _ in range(2 * (MOST_LOST - 1))]
    routers, usage, got = outcome([begun, *again, *(Strand([[token(30, finish=True)]]) for _ in range(2))], n=3, seed=7)
    assert got == {0: [0, 9], 1: [1, 20, 20, 30], 2: [2, 20, 20, 30]}
    assert usage.completion == 10
    assert [one.sampling.n for one in routers.asked] == [3, 1, 1, 1, 1, 1, 1]
    assert {one.sampling.seed for one in routers.asked[1:]} == {completion_seed(7, 1), completion_seed(7, 2)}
    assert len({one.request_id for one in routers.asked}) == 7


@pytest.mark.parametrize("news", [[], [[token(8)]]])
def test_a_request_that_loses_too_many_routers_is_given_up(news):
    script = [Strand([*news, lost()]) for _ in range(MOST_LOST + 1)]
    with pytest.raises(NotReady, match=f"{MOST_LOST + 1} routers were lost"):
        outcome(script)


def test_what_has_ended_is_not_asked_for_again():
    routers, _, got = outcome([Strand([[token(8, 0, finish=True), token(9, 1, finish=True)], lost()])], n=2)
    assert got == {0: [8], 1: [9]} and len(routers.asked) == 1


@pytest.mark.parametrize("refusal", [QueueFull("full"), NotReady("no rank")])
def test_a_refusal_ends_what_nobody_had_and_not_what_a_router_lost(refusal):
    with pytest.raises(type(refusal)):
        outcome([Strand(refusal=refusal)])
    begun = Strand([[token(8)], lost()])
    routers, _, got = outcome([begun, Strand(refusal=refusal), Strand([[token(9, finish=True)]])])
    assert got == {0: [8, 9]} and routers.num_lost == 1
    assert [one.num_delivered for one in routers.asked] == [0, 1, 1]
