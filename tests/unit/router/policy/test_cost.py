"""The cost policy: each term in seconds, and what it does to the choice."""

import pytest

from router.policy.cost import candidates, choose
from router.policy.snapshot import Parameters
from tests.support.ranks import query, snapshot, view

PARAMETERS = Parameters(fetch=False)
"""What fetches change has a page of its own."""

PREFILL_AND_DECODE = snapshot(view("p0", "prefill"), view("p1", "prefill"), view("d0"), view("d1"))


def decide(ranks, question, parameters=PARAMETERS):
    return choose(ranks, question, parameters)


def candidate(ranks, question, name, parameters=PARAMETERS):
    """What the policy knows of one rank, chosen or not."""
    [found] = [one for one in candidates(ranks, question, parameters) if one.incarnation == name]
    for chosen in choose(ranks, question, parameters).candidates:
        assert chosen.incarnation != name or chosen == found
    return found


def test_each_term_is_in_seconds():
    ranks = snapshot(
        view("p", "prefill", queued_tokens=300, sent_tokens=200),
        view("d", queued_tokens=100, num_running=3, sent_requests=1, free_blocks=516),
    )
    parameters = Parameters(
        block_bytes=1_000_000, transfer_bytes_per_s=1e8, handoff_s=0.5, pressure_s=2.0, credit_half_life_s=0.5
    )
    # 1,000 tokens: 15 whole blocks of 64 and a tail of 40; 16 blocks with the first output token
    question = query(1000, p=5, d=3)
    decision = decide(ranks, question, parameters)
    assert (decision.prefill, decision.decode, decision.has_room) == ("p", "d", True)
    p, d = candidate(ranks, question, "p", parameters), candidate(ranks, question, "d", parameters)
    assert p.terms.queue_s == pytest.approx(0.5)
    assert p.terms.compute_s == pytest.approx(0.960)
    assert p.terms.credit_s == pytest.approx(-0.320 / 2), "the queue is one half-life long"
    assert p.first_token_s == pytest.approx(0.5 + 0.640)
    assert d.terms.queue_s == pytest.approx(0.1)
    assert d.terms.compute_s == pytest.approx(0.040)
    assert d.terms.transfer_s == pytest.approx(0.5 + 12 * 0.01)
    assert d.terms.decode_s == pytest.approx(32 * 5 / 100)
    used = (1000 - 516 + 13) / 1000
    assert d.terms.pressure_s == pytest.approx(2.0 * used / (1 - used))
    assert d.terms.credit_s == 0
    assert decision.first_token_s == pytest.approx(0.5 + 0.640 + 0.1 + 0.040 + 0.62)


def test_a_mixed_rank_computes_alone():
    ranks, question = snapshot(view("m", "mixed", queued_tokens=2000)), query(1000, m=5)
    decision = decide(ranks, question)
    assert (decision.prefill, decision.decode) == (None, "m")
    terms = candidate(ranks, question, "m").terms
    assert terms.compute_s == pytest.approx(1.0)
    assert terms.credit_s == pytest.approx(-0.320 / 2)
    assert decision.first_token_s == pytest.approx(2.0 + 1.0 - 0.320)


def test_the_prefill_pool_is_skipped_for_a_short_tail_and_used_for_a_long_one():
    question = query(1000, d0=15)
    assert decide(PREFILL_AND_DECODE, question).prefill is None
    assert decide(PREFILL_AND_DECODE, question).decode == "d0"
    # 4 blocks and the tail of 40 tokens: 296, one block more than a short tail
    assert decide(PREFILL_AND_DECODE, query(1000, d0=11)).prefill is not None
    assert decide(PREFILL_AND_DECODE, query(1000, d0=12)).prefill is None
    assert decide(PREFILL_AND_DECODE, query(1000, d0=11), Parameters(short_tail_tokens=296)).prefill is None
    assert decide(PREFILL_AND_DECODE, query(64)).prefill is None, "no whole block to hand over"


def test_a_short_tail_is_handed_over_when_that_is_much_faster():
    ranks = snapshot(view("p", "prefill", prefill_tokens_per_s=1e6), view("d", prefill_tokens_per_s=100.0))
    assert decide(ranks, query(1000, d=12)).prefill == "p"
    assert decide(ranks, query(1000, d=15)).prefill is None, "nothing to hand over"


def test_decode_ranks_compute_alone_when_no_prefill_rank_can():
    drained = view("p", "prefill", draining=True)
    assert decide(snapshot(drained, view("d")), query(1000)).prefill is None


def test_a_long_cached_prefix_wins_until_its_holder_is_too_busy():
    def best(queued):
        ranks = snapshot(view("holder", "mixed", queued_tokens=queued), view("other", "mixed"))
        return decide(ranks, query(2000, holder=30)).decode

    assert best(0) == best(1000) == "holder"
    assert best(2000) == "other"


def test_one_giant_shared_prefix_does_not_draw_all_requests_to_its_holder():
    """Each request is counted where it goes, as a router does; nobody reports meanwhile."""
    sent = {"holder": 0, "a": 0, "b": 0, "c": 0}
    for seed in range(80):
        ranks = snapshot(*(view(name, "mixed", sent_tokens=1000 * n, sent_requests=n) for name, n in sent.items()))
        sent[decide(ranks, query(3000, seed=seed, holder=30)).decode] += 1
    assert sent["holder"] >= max(sent.values()) - 1, "it is still the best of equals"
    assert max(sent.values()) <= 30


def test_every_rank_has_its_share_of_equal_requests():
    chosen = [decide(PREFILL_AND_DECODE, query(1000, seed=seed)) for seed in range(400)]
    for name in ("p0", "p1"):
        assert 140 < sum(decision.prefill == name for decision in chosen) < 260
    for name in ("d0", "d1"):
        assert 140 < sum(decision.decode == name for decision in chosen) < 260


def test_chance_decides_within_five_percent_and_not_beyond():
    def winners(extra):
        # an idle mixed rank costs 1 s to compute and 0.32 s to decode, and a little pressure
        ranks = snapshot(view("best", "mixed"), view("other", "mixed", queued_tokens=extra))
        return {decide(ranks, query(1000, seed=seed)).decode for seed in range(40)}

    assert winners(60) == {"best", "other"}
    assert winners(75) == {"best"}


def test_a_decode_rank_is_not_dearer_for_the_last_block_that_it_holds():
    """With all whole blocks it must compute alone, behind a long queue; with one less it could be handed that one."""
    ranks = snapshot(view("p", "prefill"), view("d", queued_tokens=20_000), view("rival", queued_tokens=20_500))
    for seed in range(20):
        assert decide(ranks, query(3000, seed=seed, p=46, d=45), Parameters(near_tie=0.0)).decode == "d"
        assert decide(ranks, query(3000, seed=seed, p=46, d=46), Parameters(near_tie=0.0)).decode == "d"


def test_a_rank_is_full_without_blocks_or_without_a_place():
    def is_full(role, **changes):
        ranks = snapshot(view("r", role, **changes), *([view("d")] if role == "prefill" else []))
        return not candidate(ranks, query(1000, r=5), "r").has_room

    # 16 blocks with the first output token, 15 to prefill, 5 of them there
    assert not is_full("decode", free_blocks=11)
    assert is_full("decode", free_blocks=10)
    assert is_full("decode", free_blocks=20, sent_blocks=10)
    assert not is_full("prefill", free_blocks=10)
    assert is_full("prefill", free_blocks=9)
    for role in ("decode", "prefill"):
        assert not is_full(role, num_running=13, num_waiting=1, sent_requests=1)
        assert is_full(role, num_running=13, num_waiting=2, sent_requests=1)


def test_busy_decode_ranks_are_avoided_by_requests_and_by_blocks():
    by_requests = snapshot(view("busy", "mixed", num_running=8), view("idle", "mixed"))
    by_blocks = snapshot(view("busy", "mixed", free_blocks=50), view("idle", "mixed", free_blocks=900))
    for seed in range(20):
        assert decide(by_requests, query(1000, seed=seed)).decode == "idle"
        assert decide(by_blocks, query(1000, seed=seed)).decode == "idle"


def test_an_unmeasured_rank_counts_with_the_median_of_its_pool_or_the_default():
    ranks = snapshot(
        view("new", "mixed", prefill_tokens_per_s=0.0, decode_tokens_per_s=0.0),
        view("a", "mixed", prefill_tokens_per_s=100.0, decode_tokens_per_s=10.0),
        view("b", "mixed", prefill_tokens_per_s=300.0, decode_tokens_per_s=30.0),
        view("alone", "decode", pool="other", prefill_tokens_per_s=0.0, decode_tokens_per_s=0.0),
    )
    question = query(1000)
    assert candidate(ranks, question, "new").terms.compute_s == pytest.approx(1000 / 200)
    assert candidate(ranks, question, "new").terms.decode_s == pytest.approx(32 / 20)
    assert candidate(ranks, question, "alone").terms.compute_s == pytest.approx(1.0)
    assert candidate(ranks, question, "alone").terms.decode_s == pytest.approx(0.32)


def test_the_reason_names_ranks_and_blocks():
    assert (
        decide(PREFILL_AND_DECODE, query(1000, d1=15)).reason
        == "d1 holds 15 of 15 blocks and computes 40 tokens itself"
    )
    decision = decide(PREFILL_AND_DECODE, query(1000, p0=9))
    assert decision.reason.startswith(f"{decision.decode} holds 0 of 15 blocks, p0 holds 9 and computes the others")
    assert "by chance among 2" in decision.reason
