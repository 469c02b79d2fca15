"""What one decision of the cost policy takes: prints one JSON object.

usage: python -m benchmarks.policy_cost [--ranks 8,100,1000] [--rounds 300]

A third of the ranks prefill, one in fifty holds a prefix. `differing`: random loads; `equal`: all idle, so that chance
decides among all; `after_reports`: 20 ranks have reported since the last decision. Microseconds, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable

from baleen.ids import Incarnation
from router.policy.cost import choose
from router.policy.snapshot import Parameters, Query, RankView, Snapshot

PARAMETERS = Parameters()


def view(number: int, num_ranks: int, chance: random.Random | None) -> RankView:
    """One rank, idle without `chance`."""
    role = "prefill" if number < num_ranks // 3 else "decode"
    return RankView(
        incarnation=Incarnation(f"{number:016x}"),
        pool=role,
        group=f"{role}/{number // 8}",
        role="prefill" if role == "prefill" else "decode",
        address="",
        total_blocks=10_000,
        max_running=256,
        free_blocks=chance.randrange(1000, 10_000) if chance else 10_000,
        num_running=chance.randrange(200) if chance else 0,
        queued_tokens=chance.randrange(50_000) if chance else 0,
        prefill_tokens_per_s=8000.0,
        decode_tokens_per_s=2000.0,
    )


def median_us(work: Callable[[], object], rounds: int) -> float:
    """Median time of one call."""
    work()
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return round(1e6 * statistics.median(taken), 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="8,100,1000")
    parser.add_argument("--rounds", type=int, default=300)
    args = parser.parse_args()
    report = {}
    for num_ranks in map(int, args.ranks.split(",")):
        chance = random.Random(1)
        differing = Snapshot(tuple(view(number, num_ranks, chance) for number in range(num_ranks)))
        equal = Snapshot(tuple(view(number, num_ranks, None) for number in range(num_ranks)))
        held = {rank.incarnation: 20 for rank in differing.ranks[::50]}
        query = Query(request_id="request", num_prompt_tokens=3000, max_tokens=100, cached_blocks=held)
        reports = {number: view(number, num_ranks, chance) for number in range(min(20, num_ranks))}

        def once(snapshot: Snapshot = differing, query: Query = query) -> object:
            return choose(snapshot, query, PARAMETERS)

        def after(snapshot: Snapshot = differing, query: Query = query, reports: dict = reports) -> object:
            return choose(snapshot.replaced(reports), query, PARAMETERS)

        report[f"{num_ranks} ranks"] = {
            "differing": median_us(once, args.rounds),
            "equal": median_us(lambda once=once, equal=equal: once(equal), args.rounds),
            "after_reports": median_us(after, args.rounds),
        }
    print(json.dumps({"load_average": os.getloadavg()[0], **report}, indent=1))


if __name__ == "__main__":
    main()
