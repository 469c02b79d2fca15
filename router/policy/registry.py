"""The policies by the names that a configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from baleen.cluster_config import PolicyName
from router.policy import cost, least_loaded, round_robin
from router.policy.snapshot import Policy

POLICIES: Mapping[PolicyName, Policy] = MappingProxyType(
    {"cost": cost.choose, "least_loaded": least_loaded.choose, "round_robin": round_robin.choose}
)
