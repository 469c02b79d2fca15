"""Ranks as a policy sees them, for tests."""

from __future__ import annotations

from baleen.ids import Incarnation
from router.policy.snapshot import Parameters, Query, RankView, Snapshot

PARAMETERS = Parameters()


def view(name: str, role: str = "decode", **changes: object) -> RankView:
    """An idle rank of 1,000 blocks that computes 1,000 prompt tokens and makes 100 tokens in a second."""
    fields: dict[str, object] = {
        "incarnation": Incarnation(name),
        "pool": role,
        "group": f"{role}-0",
        "role": role,
        "address": "",
        "total_blocks": 1000,
        "max_running": 16,
        "free_blocks": 1000,
        "prefill_tokens_per_s": 1000.0,
        "decode_tokens_per_s": 100.0,
    }
    return RankView(**{**fields, **changes})  # type: ignore[arg-type]


def snapshot(*ranks: RankView) -> Snapshot:
    return Snapshot(ranks)


def query(num_prompt_tokens: int = 1000, *, seed: int = 0, turn: int = 0, **cached: int) -> Query:
    """A request for 100 tokens; `cached` names the ranks that hold leading blocks."""
    return Query(
        request_id="request",
        num_prompt_tokens=num_prompt_tokens,
        max_tokens=100,
        cached_blocks={Incarnation(name): blocks for name, blocks in cached.items()},
        seed=seed,
        turn=turn,
    )
