"""Routers that a gateway loses, by cut connections: requests go on at another with exactly what would have come."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest

from baleen.errors import DeadlineExceeded, NotReady, QueueFull
from baleen.sampling import SamplingParams
from baleen.telemetry import Log
from baleen.text.chat_format import FORMATS
from baleen.text.tokenizer import load_tokenizer
from baleen.text.tokenizer_files import tokenizer_files
from baleen.v1 import router_pb2, router_pb2_grpc
from loadtest.fault_proxy import FaultProxy
from router.config import RouterProcessConfig
from router.gateway import running
from router.gateway.ask import Ask
from router.gateway.engine import Engine
from router.gateway.routers import Routers
from router.main import Router
from tests.support.fake_rank import FakeRank
from tests.support.router_client import PROMPT, at_rest, eventually, run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    (directory / "tokenizer.json").write_text(tokenizer_files("bytes", max_length=4096).tokenizer_json)
    return directory


@contextlib.asynccontextmanager
async def gateway_before(model, ranks, num_routers=2, deadline_s=30.0, **config):
    """An engine, its routers, each with the connection to it, and the ranks."""
    async with contextlib.AsyncExitStack() as stack:
        for rank in ranks:
            await stack.enter_async_context(rank)
        proxies, routers = [], []
        addresses = ",".join(rank.info.address for rank in ranks)
        for _ in range(num_routers):
            router = Router(
                RouterProcessConfig(ranks=addresses, model=str(model), listen="127.0.0.1:0", **config), log=Log("off")
            )
            address = await router.start()
            stack.push_async_callback(router.stop, 0.0)
            await eventually(lambda router=router: len(router.members.snapshot().ranks) == len(ranks))
            routers.append(router)
            proxies.append(await stack.enter_async_context(FaultProxy("127.0.0.1:0", address)))
        links = Routers([proxy.address for proxy in proxies], log=Log("off"))
        stack.push_async_callback(links.close)
        engine = Engine(links, load_tokenizer(model), FORMATS["deepseek-v3.2"], deadline_s=deadline_s)
        await eventually(lambda: all(link.answers for link in links.links))
        yield SimpleNamespace(engine=engine, links=links, proxies=proxies, routers=routers, ranks=ranks)


class PausingRank(FakeRank):
    """pause_after: it pauses once all requests together have so many tokens."""

    pause_after = None

    def _make_step(self):
        super()._make_step()
        if self.pause_after is not None and self.num_tokens >= self.pause_after:
            self.pause_after = None
            self.pause()


def ask_for(**sampling):
    sampling = {"max_tokens": 40, "temperature": 1.0, "seed": 7, "logprobs": 1, **sampling}
    return Ask(model="", prompt=PROMPT, sampling=SamplingParams(**sampling), thinking=None, cache_salt="mine")


class Got:
    """All that came of one ask, by answer."""

    def __init__(self):
        self.tokens, self.texts, self.finish, self.prompt = {}, {}, {}, []
        self.num_logprobs = 0

    def take(self, piece):
        if piece.prompt is not None:
            assert piece.prompt.position == 1 + len(self.prompt)
            self.prompt += piece.prompt.logprobs
            return
        assert piece.index not in self.finish
        self.tokens[piece.index] = [*self.tokens.get(piece.index, []), *piece.token_ids]
        self.texts[piece.index] = self.texts.get(piece.index, "") + "".join(event.text for event in piece.events)
        self.num_logprobs += len(piece.logprobs)
        if piece.finish:
            self.finish[piece.index] = (piece.finish, piece.stopped_by)

    @property
    def num_tokens(self):
        return sum(map(len, self.tokens.values()))


async def lose(proxy):
    """The router at the other end is gone."""
    await proxy.refuse()
    proxy.reset()


def router_of(gateway):
    """The number of the one that works."""
    [number] = [number for number, router in enumerate(gateway.routers) if router.num_active]
    return number


async def all_of(gateway, ask, *, lose_at=(), on_loss=lambda: None, got=None):
    """What comes; at each place the router that has the request is lost, once so many tokens have come."""
    got, places, [rank] = got or Got(), list(lose_at), gateway.ranks
    base = rank.num_tokens
    rank.pause_after = base + places[0] if places else None
    one = gateway.engine.start(ask, request_id="r", tenant="acme")
    try:
        async for pieces in one.pieces():
            for piece in pieces:
                got.take(piece)
            if places and got.num_tokens >= places[0]:
                places.pop(0)
                on_loss()
                await lose(gateway.proxies[router_of(gateway)])
                await at_rest(rank)
                rank.pause_after = base + places[0] if places else None
                rank.resume()
    finally:
        one.close()
    assert not places
    got.usage = one.usage
    return got


SAMPLINGS = {
    "sampled": {},
    "greedy": {"temperature": 0.0},
    "three": {"n": 3},
    "prompt": {"prompt_logprobs": 1, "n": 2},
    "stop": {"stop": ("stop",), "min_tokens": 2},
}


@pytest.mark.parametrize("name", SAMPLINGS)
def test_an_answer_goes_on_at_the_other_router(model, name):
    async def scenario():
        rank = PausingRank()
        rank.num_cached_tokens = 64
        async with gateway_before(model, [rank]) as gateway:
            sampling = dict(SAMPLINGS[name])
            if name == "stop":
                plain = await all_of(gateway, ask_for(**SAMPLINGS[name]))
                sampling["stop"] = (plain.texts[0][24:31], plain.texts[0][12] + "\0")
            ask = ask_for(**sampling)
            whole = await all_of(gateway, ask)
            num_submits = len(rank.submits)
            again = await all_of(gateway, ask, lose_at=[8], on_loss=lambda: setattr(rank, "num_cached_tokens", 128))
            assert (again.tokens, again.texts, again.finish) == (whole.tokens, whole.texts, whole.finish)
            assert again.num_logprobs == whole.num_logprobs and again.prompt == whole.prompt
            assert again.usage == whole.usage, "as of the first router"
            assert gateway.links.num_lost == 1
            begun, *rest = rank.submits[num_submits:]
            assert len(rest) == begun.sampling.n and all(one.num_delivered for one in rest)
            await at_rest(rank)

    run(scenario())


def test_nothing_that_has_come_is_lost_or_comes_twice_however_often_it_is(model):
    async def scenario():
        rank = PausingRank()
        async with gateway_before(model, [rank], num_routers=4) as gateway:
            ask = ask_for(n=2)
            whole = await all_of(gateway, ask)
            again = await all_of(gateway, ask, lose_at=[5])
            assert again.tokens == whole.tokens
            for proxy in gateway.proxies:
                with contextlib.suppress(OSError):
                    await proxy.accept()
            await eventually(lambda: all(link.answers for link in gateway.links.links))
            alone = ask_for()
            assert (await all_of(gateway, alone, lose_at=[4, 9, 20])).tokens == {0: whole.tokens[0]}
            for proxy in gateway.proxies:
                await proxy.accept()
            await eventually(lambda: all(link.answers for link in gateway.links.links))
            with pytest.raises(NotReady, match="4 routers were lost with the request"):
                await all_of(gateway, alone, lose_at=[4, 9, 20, 25])
            await at_rest(rank)

    run(scenario())


def test_the_only_router_is_waited_for(model):
    async def scenario():
        rank = PausingRank()
        async with gateway_before(model, [rank], num_routers=1) as gateway:
            [proxy] = gateway.proxies
            ask = ask_for()
            whole = await all_of(gateway, ask)
            going = asyncio.create_task(all_of(gateway, ask, lose_at=[12]))
            await eventually(lambda: gateway.links.num_lost == 1 and not gateway.links.links[0].answers)
            new = gateway.engine.start(ask, request_id="new", tenant="acme")
            waits = asyncio.create_task(new.admitted())
            await asyncio.sleep(0.05)
            assert not going.done() and not waits.done()
            await proxy.accept()
            assert (await going).tokens == whole.tokens
            await waits
            new.close()
            await at_rest(rank)

    run(scenario())


def test_the_wait_for_a_router_ends(model, monkeypatch):
    async def scenario():
        async with gateway_before(model, [PausingRank()], num_routers=1, deadline_s=0.2) as gateway:
            await lose(gateway.proxies[0])
            await eventually(lambda: not gateway.links.links[0].answers)
            with pytest.raises(DeadlineExceeded, match="no router"):
                await all_of(gateway, ask_for())
            monkeypatch.setattr(running, "WAIT_S", 0.05)
            with pytest.raises(NotReady, match=r"no router has taken the request for 0\.05 s"):
                await all_of(gateway, ask_for())
            with pytest.raises(NotReady, match="does not answer"):
                await gateway.engine.model()

    run(scenario())


@pytest.mark.parametrize("phase", ["queued", "prefilling"])
def test_before_the_first_token_it_begins_again_elsewhere(model, phase):
    async def scenario():
        rank = PausingRank()
        if phase == "queued":
            rank.free_blocks = 0
        else:
            rank.pause()
        async with gateway_before(model, [rank]) as gateway:
            ask = ask_for(n=2, prompt_logprobs=1)
            got = Got()
            answer = asyncio.create_task(all_of(gateway, ask, got=got))
            await eventually(lambda: any(router.num_active for router in gateway.routers))
            if phase == "prefilling":
                await eventually(lambda: bool(got.prompt))
            await lose(gateway.proxies[router_of(gateway)])
            await eventually(lambda: gateway.links.num_lost == 1)
            if phase == "queued":
                rank.free_blocks = 64
                rank._report({})
            else:
                rank.resume()
            await answer
            assert len(got.prompt) == len(PROMPT) - 1, "once"
            assert got.tokens.keys() == {0, 1} and got.num_tokens == 80
            assert rank.submits[-1].sampling.n == 2 and not rank.submits[-1].num_delivered
            await at_rest(rank)

    run(scenario())


def test_requests_go_in_turn_and_a_router_that_leaves_gets_none(model):
    async def scenario():
        rank = PausingRank()
        async with gateway_before(model, [rank], num_routers=3) as gateway:
            links = gateway.links
            assert {links.pick() for _ in range(3)} == set(links.links)
            first, second, third = links.links
            assert {links.pick({first}) for _ in range(4)} == {second, third}
            assert links.pick(set(links.links)) is None
            # the gateway's question how it is must not keep it until its time is over
            await asyncio.wait_for(gateway.routers[0].stop(60.0), 20)
            await eventually(lambda: not first.answers)
            assert {links.pick() for _ in range(4)} == {second, third}
            assert links.by_hope()[-1] is first
            assert (await gateway.engine.model()).max_context == 4096

    run(scenario())


async def num_shed(link):
    """Requests that a router has refused."""
    status = await router_pb2_grpc.RouterServiceStub(link.channel).GetStatus(router_pb2.GetStatusRequest())
    return status.num_shed


def test_a_refusal_is_the_answer_unless_the_request_had_a_router_already(model):
    async def scenario():
        rank = PausingRank()
        async with gateway_before(model, [rank], max_queued=1) as gateway:
            whole = await all_of(gateway, ask_for())

            lost = []

            def fill():
                lost.append(router_of(gateway))
                rank.free_blocks = 0
                rank._report({})

            going = asyncio.create_task(all_of(gateway, ask_for(), lose_at=[5], on_loss=fill))
            await eventually(lambda: bool(lost))
            left = 1 - lost[0]
            queued = gateway.engine.start(ask_for(), request_id="queued", tenant="acme")
            await eventually(lambda: gateway.routers[left].num_active > 0)
            await eventually(lambda: gateway.links.num_lost == 1 and not gateway.links.links[1 - left].answers)
            with pytest.raises(QueueFull):
                await all_of(gateway, ask_for())
            assert not going.done() and await num_shed(gateway.links.links[left]) >= 2
            queued.close()
            rank.free_blocks = 64
            rank._report({})
            assert (await going).tokens == whole.tokens
            await at_rest(rank)

    run(scenario())
