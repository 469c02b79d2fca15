"""Ranks of two models at once, as while a cluster's weights are replaced: nothing is moved between them."""

import asyncio

import pytest

from baleen.blocks import chain_hashes, root_hash
from baleen.errors import NotReady
from baleen.ids import RequestId
from baleen.reports import Load
from baleen.sampling import SamplingParams
from router.choice import Chooser
from router.members import Members
from router.messages import Job
from router.policy.explain import Explainer
from router.policy.registry import POLICIES
from router.policy.snapshot import Parameters
from tests.support.redis_server import rank_info

PARAMETERS = Parameters()
PROMPT = tuple(range(1000))
OLD, NEW = "aa" * 16, "bb" * 16
IDLE = Load(
    free_blocks=64,
    num_waiting=0,
    num_running=0,
    queued_tokens=0,
    running_tokens=0,
    prefill_tokens_per_s=1000.0,
    decode_tokens_per_s=100.0,
)


class Shelf:
    """An index in which each rank holds a number of blocks of one model."""

    def __init__(self, **held):
        self.held = held

    async def prefixes(self, hashes):
        found = {}
        for name, (model, blocks) in self.held.items():
            known = chain_hashes(root_hash(bytes.fromhex(model), b""), PROMPT)[:blocks]
            found[name] = sum(mine == asked for mine, asked in zip(known, hashes, strict=False))
        return {name: count for name, count in found.items() if count}


def chooser(index=None, **ranks):
    """A chooser over idle ranks: name=(role, model)."""
    members = Members()
    members.apply({name: rank_info(name, role=role, model_fingerprint=model) for name, (role, model) in ranks.items()})
    for name in ranks:
        members.reached(name)
        members.report(name, IDLE)
    return Chooser(members, index or Shelf(), POLICIES["cost"], PARAMETERS, Explainer(PARAMETERS), seed=1)


def job(number=0):
    return Job(
        request_id=RequestId(f"r{number}"), prompt=PROMPT, sampling=SamplingParams(max_tokens=1, seed=0), deadline=1e9
    )


def test_a_prompt_is_computed_and_decoded_by_ranks_of_one_model():
    made = chooser(p_old=("prefill", OLD), d_old=("decode", OLD), p_new=("prefill", NEW), d_new=("decode", NEW))
    pairs = set()
    for number in range(20):
        decision = made.place(job(number), len(PROMPT), {}, needs_room=False).decision
        pairs.add((decision.prefill, decision.decode))
    assert pairs == {("p_old", "d_old"), ("p_new", "d_new")}


def test_a_model_that_cannot_decode_yet_is_left_out():
    made = chooser(p_old=("prefill", OLD), d_old=("decode", OLD), p_new=("prefill", NEW))
    assert {made.place(job(number), len(PROMPT), {}).decision.prefill for number in range(3)} == {"p_old"}
    alone = chooser(d_old=("decode", OLD), p_new=("prefill", NEW))
    decision = alone.place(job(), len(PROMPT), {}).decision
    assert (decision.prefill, decision.decode) == (None, "d_old"), "the decode rank computes it itself"


def test_a_request_stays_with_the_model_that_it_began_with():
    made = chooser(old=("mixed", OLD), new=("mixed", NEW))
    for number in range(10):
        assert made.place(job(number), len(PROMPT), {}, needs_room=False, model=OLD).decision.decode == "old"
    assert not made.is_gone(OLD)
    left = chooser(new=("mixed", NEW))
    assert left.is_gone(OLD) and not chooser().is_gone(OLD)
    with pytest.raises(NotReady, match="no rank serves the model that the request began with"):
        left.place(job(), len(PROMPT), {}, model=OLD)


def test_prefixes_of_each_model_are_found_and_credited_to_its_own_ranks():
    made = chooser(Shelf(old=(OLD, 3), new=(NEW, 7)), old=("mixed", OLD), new=("mixed", NEW))
    held = asyncio.run(made.look_up(job(), PROMPT))
    assert held == {"old": 3, "new": 7}
    decision = made.place(job(), len(PROMPT), held).decision
    assert decision.decode == "new" and decision.candidates[0].cached_blocks == 7
