"""The status of a cluster for reading: a line for each rank, and one for what the ranks of each pool have together."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from cluster.status import ClusterStatus, RankStatus

_HEADER = (
    *("pool", "group", "role", "epoch", "rank", "address"),
    *("free", "held", "cached", "arriving", "lent"),
    *("wait", "run", "queued tok", "hit", "step", "tok/s", "transport", "metrics", "steps", ""),
)
_ROUTER_HEADER = (
    *("router", "policy", "metrics", "ranks", "queue", "queued tok", "active"),
    *("admitted", "shed", "expired", "hit", "retries left"),
)
_LEFT = {"pool", "group", "role", "epoch", "address", "transport", "router", "policy", "metrics", ""}
"""Columns of words; numbers stand on the right."""


def status_text(status: ClusterStatus) -> str:
    """The whole table."""
    routers = ", ".join(f"{address} {router.health}" for address, router in status.routers.items())
    lines = [f"cluster {status.name}: router {routers}"]
    if status.notice:
        lines.append(status.notice)
    if status.redis_error is not None:
        lines.append(f"redis: {status.redis_error}")
    lines += _router_lines(status)
    if not status.ranks:
        return "\n".join([*lines, "no rank has a lease"]) + "\n"
    rows: list[Sequence[str]] = [_HEADER]
    for pool, ranks in groupby(status.ranks, key=lambda rank: rank.info.pool):
        members = list(ranks)
        rows += map(_rank_row, members)
        rows.append(_pool_row(pool, members, status.groups.get(pool)))
    return "\n".join([*lines, "", *aligned(rows, _LEFT)]) + "\n"


def now_text() -> str:
    """The time of day, for a table that is shown again and again."""
    return time.strftime("%H:%M:%S")


@dataclass(slots=True)
class _Figures:
    """The numbers of one rank, or of several together."""

    blocks: tuple[int, ...] = (0, 0, 0, 0, 0)
    waiting: int = 0
    running: int = 0
    queued_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    step_s: float = 0.0
    tokens_per_s: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """From the free blocks to the speed; `-` for what was not measured yet."""
        return (
            *map(str, (*self.blocks, self.waiting, self.running, self.queued_tokens)),
            _share(self.cached_tokens, self.prompt_tokens),
            f"{self.step_s * 1000:.1f} ms" if self.step_s else "-",
            f"{self.tokens_per_s:.0f}" if self.tokens_per_s else "-",
        )


def _figures(rank: RankStatus) -> _Figures:
    """A rank that has not made a step has all its blocks free."""
    load = rank.load
    if load is None:
        return _Figures(blocks=(rank.info.num_blocks if rank.error is None else 0, 0, 0, 0, 0))
    free = load.free_blocks - load.cached_blocks
    return _Figures(
        blocks=(free, load.held_blocks, load.cached_blocks, load.arriving_blocks, load.lent_blocks),
        waiting=load.num_waiting,
        running=load.num_running,
        queued_tokens=load.queued_tokens,
        prompt_tokens=load.prompt_tokens,
        cached_tokens=load.cached_prompt_tokens,
        step_s=load.step_s,
        tokens_per_s=load.prefill_tokens_per_s if rank.info.role == "prefill" else load.decode_tokens_per_s,
    )


def _together(parts: Iterable[_Figures]) -> _Figures:
    """Sums; of the times of a step the longest."""
    total = _Figures()
    for part in parts:
        total.blocks = tuple(map(sum, zip(total.blocks, part.blocks, strict=True)))
        total.waiting += part.waiting
        total.running += part.running
        total.queued_tokens += part.queued_tokens
        total.prompt_tokens += part.prompt_tokens
        total.cached_tokens += part.cached_tokens
        total.step_s = max(total.step_s, part.step_s)
        total.tokens_per_s += part.tokens_per_s
    return total


def _rank_row(rank: RankStatus) -> tuple[str, ...]:
    info, load = rank.info, rank.load
    state = f"{rank.phase} {rank.seconds_in_phase:.1f} s" if rank.phase else ""
    if load is not None and load.draining:
        state = f"draining, {state}"
    return (
        *(info.pool, info.group, info.role, info.epoch[:8], str(info.rank), info.address),
        *_figures(rank).cells(),
        info.transport or "-",
        info.metrics_address or "-",
        "-" if rank.step is None else str(rank.step),
        f"error: {rank.error}" if rank.error is not None else state,
    )


def _pool_row(pool: str, ranks: Sequence[RankStatus], groups: tuple[int, int] | None) -> tuple[str, ...]:
    """groups: running and wanted, as Ray Serve has it; None: not known."""
    running = len({rank.info.group for rank in ranks})
    num_groups, wanted = groups or (running, running)
    well = sum(rank.error is None for rank in ranks)
    summary = f"{num_groups} of {wanted} group{'s' * (wanted != 1)}, {well} of {len(ranks)} ranks well"
    return (pool, "all", "", "", "", "", *_together(map(_figures, ranks)).cells(), "", "", "", summary)


def _router_lines(status: ClusterStatus) -> list[str]:
    """A small table of the routers that tell something of themselves."""
    rows: list[Sequence[str]] = [_ROUTER_HEADER]
    for address, router in status.routers.items():
        figures = router.figures
        if figures is None:
            continue
        counts = (
            *(figures.num_ranks, figures.num_queued, figures.queued_tokens, figures.num_active),
            *(figures.num_admitted, figures.num_shed, figures.num_expired),
        )
        share = _share(figures.cached_prompt_tokens, figures.prompt_tokens)
        where = figures.metrics_address or "-"
        rows.append((address, figures.policy, where, *map(str, counts), share, f"{figures.retry_budget:.0f}"))
    return ["", *aligned(rows, _LEFT)] if len(rows) > 1 else []


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def aligned(rows: Sequence[Sequence[str]], left: Collection[str]) -> list[str]:
    """Columns under the names of the first row; those in `left` hold words."""
    names = rows[0]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if name in left else cell.rjust(width)
            for name, cell, width in zip(names, row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
