"""What Serve's controller calls to learn how many replicas a pool should have.

Serve copies this module into its controller, so it holds only the adaptation; the decision is in cluster/scaling.py.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from cluster.scaling import GroupLoad, Target, decide

STALE_S = 10.0
"""Age at which a group's report no longer tells anything."""


class GroupScaling:
    """The policy of one pool."""

    def __init__(self, **target: Any) -> None:
        """target: the fields of a Target."""
        self._target = Target(**target)

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """context: Serve's AutoscalingContext. Returns replicas, and what the next call finds in its policy_state."""
        series = context.raw_metrics
        groups = [_latest(series, replica, context.current_time) for replica in context.running_replicas]
        wanted, wishes = decide(
            self._target,
            groups,
            context.target_num_replicas,
            context.policy_state.get("wishes", ()),
            context.current_time,
        )
        return wanted, {"wishes": wishes}


def _latest(series: dict[str, dict[Any, Any]], replica: Any, now: float) -> GroupLoad | None:
    values = {}
    for field in fields(GroupLoad):
        points = series.get(field.name, {}).get(replica)
        if not points or points[-1].timestamp < now - STALE_S:
            return None
        values[field.name] = points[-1].value
    return GroupLoad(**values)
