"""Several routers that send at once, each blind to the others until a rank reports: how far they overshoot."""

from dataclasses import replace

import pytest

from baleen.ids import RequestId
from baleen.reports import Load
from baleen.sampling import SamplingParams
from router.choice import Chooser, NoIndex
from router.members import Members
from router.messages import Job
from router.policy.explain import Explainer
from router.policy.registry import POLICIES
from router.policy.snapshot import Parameters
from tests.support.redis_server import rank_info

PARAMETERS = Parameters()
PROMPT = 1000
LOAD = Load(
    free_blocks=10_000,
    num_waiting=0,
    num_running=0,
    queued_tokens=0,
    running_tokens=0,
    prefill_tokens_per_s=1000.0,
    decode_tokens_per_s=1e5,
)


class Cluster:
    """Mixed ranks with a queue each, and routers that know of it what was last reported."""

    def __init__(self, num_routers, queues):
        self.queues = dict(queues)
        infos = {name: rank_info(name, role="mixed", num_blocks=10_000, max_running=4096) for name in queues}
        self.routers = []
        for seed in range(num_routers):
            members = Members()
            members.apply(infos)
            for name in infos:
                members.reached(name)
            explainer = Explainer(PARAMETERS)
            chooser = Chooser(members, NoIndex(), POLICIES["cost"], PARAMETERS, explainer, seed=seed)
            self.routers.append((members, chooser))
        self.report()

    def report(self):
        """All ranks to all routers. Twice: what was sent before the first has then been counted by the rank."""
        for members, _ in self.routers:
            for name, tokens in self.queues.items():
                for _ in range(2):
                    members.report(name, replace(LOAD, queued_tokens=tokens))

    def send(self, router, number):
        job = Job(
            request_id=RequestId(f"{router}-{number}"),
            prompt=tuple([5] * PROMPT),
            sampling=SamplingParams(max_tokens=1, seed=0),
            deadline=1e9,
        )
        placement = self.routers[router][1].place(job, PROMPT, {})
        self.queues[placement.decision.decode] += PROMPT
        return placement.decision.decode


@pytest.mark.parametrize("num_routers", [1, 2, 3, 8])
@pytest.mark.parametrize("gap", [4, 10])
def test_an_idle_rank_gets_at_most_its_gap_from_each_router(num_routers, gap):
    """`gap` requests fit before it is as busy as the others. One more may come by chance, as near ties do."""
    cluster = Cluster(num_routers, {"idle": 0, **{f"r{number}": gap * PROMPT for number in range(9)}})
    sent = [0] * num_routers
    for number in range(4 * gap):
        for router in range(num_routers):
            sent[router] += cluster.send(router, number) == "idle"
    assert all(gap <= count <= gap + 3 for count in sent), sent
    # a report later everybody knows: nothing more goes there while the others have less to do
    cluster.report()
    others = min(tokens for name, tokens in cluster.queues.items() if name != "idle")
    if cluster.queues["idle"] > 1.1 * others:
        assert all(cluster.send(router, 1000) != "idle" for router in range(num_routers))


@pytest.mark.parametrize("num_routers", [1, 2, 3, 8])
def test_among_equal_ranks_no_router_adds_to_the_spread_by_more_than_a_request(num_routers):
    cluster = Cluster(num_routers, {f"r{number}": 0 for number in range(10)})
    for number in range(50):
        for router in range(num_routers):
            cluster.send(router, number)
    queues = [tokens // PROMPT for tokens in cluster.queues.values()]
    assert sum(queues) == 50 * num_routers
    assert max(queues) - min(queues) <= 2 * num_routers


def test_reports_between_requests_keep_routers_from_herding_at_all():
    cluster = Cluster(4, {"idle": 0, **{f"r{number}": 10 * PROMPT for number in range(9)}})
    for number in range(10):
        for router in range(4):
            cluster.send(router, number)
            cluster.report()
    queues = [tokens // PROMPT for tokens in cluster.queues.values()]
    assert max(queues) - min(queues) <= 3
