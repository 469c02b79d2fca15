"""Random snapshots and queries for the tests of policies."""

from hypothesis import strategies as st

from router.policy.snapshot import Query, Snapshot
from tests.support.ranks import view

ROLES = st.sampled_from(["prefill", "decode", "mixed"])


@st.composite
def ranks(draw):
    total = draw(st.integers(10, 200))
    return {
        "role": draw(ROLES),
        "total_blocks": total,
        "free_blocks": draw(st.integers(0, total)),
        "max_running": draw(st.integers(1, 8)),
        "num_running": draw(st.integers(0, 8)),
        "num_waiting": draw(st.integers(0, 3)),
        "queued_tokens": draw(st.integers(0, 50_000)),
        "sent_tokens": draw(st.integers(0, 5_000)),
        "sent_requests": draw(st.integers(0, 2)),
        "sent_blocks": draw(st.integers(0, 20)),
        "prefill_tokens_per_s": draw(st.sampled_from([0.0, 50.0, 1000.0, 90_000.0])),
        "decode_tokens_per_s": draw(st.sampled_from([0.0, 5.0, 100.0, 4000.0])),
        "draining": draw(st.integers(0, 4)) == 0,
    }


@st.composite
def cases(draw, most_ranks=8):
    drawn = draw(st.lists(ranks(), min_size=1, max_size=most_ranks))
    views = [view(f"r{number}", **fields) for number, fields in enumerate(drawn)]
    cached = {rank.incarnation: draw(st.integers(0, 60)) for rank in views if draw(st.booleans())}
    return Snapshot(tuple(views)), Query(
        request_id="request",
        num_prompt_tokens=draw(st.integers(1, 5_000)),
        max_tokens=16,
        cached_blocks=cached,
        seed=draw(st.integers(0, 2**32)),
        turn=draw(st.integers(0, 100)),
        no_fetch=frozenset(rank.incarnation for rank in views if draw(st.integers(0, 3)) == 0),
        transfer_bytes_per_s=draw(st.sampled_from([0.0, 1e7, 1e9])),
    )
