"""What of a cluster can change while it runs, and which pools a change touches. Pure, but for the tokenizers' files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from baleen.cluster_config import ClusterConfig, PoolConfig
from baleen.config import ModelConfig
from baleen.config_file import to_dict
from baleen.errors import ConfigError
from baleen.text.tokenizer_files import TOKENIZER_FILE
from cluster.group import GroupPlan
from cluster.service import Service

FIXED = {
    "name": "its services and its keys in Redis have it",
    "ray": "its processes run there",
    "redis": "all its parts find each other there",
    "router.host": "clients find the routers there",
    "router.node": "clients find the routers there",
    "router.port": "clients find the routers there",
    "router.metrics_port": "Prometheus finds the routers there",
    "gateway.host": "clients find the gateways there",
    "gateway.port": "clients find the gateways there",
    "tls": "routers and all ranks must have it in common",
    "transfer": "all ranks must have it in common",
}
"""Keys, with all below them, that cannot change while a cluster runs, and why."""

_SIZES = PoolConfig(name="sizes", role="mixed")
"""What says how many groups a pool has, as it is unless told otherwise."""


def require_changeable(old: ClusterConfig, new: ClusterConfig) -> None:
    """Raise ConfigError that names every key that cannot change while the cluster runs, its two values, and why."""
    before, after = to_dict(old), to_dict(new)
    found = [
        f"{difference} ({why})"
        for key, why in FIXED.items()
        for difference in _differences(_at(before, key), _at(after, key), key)
    ]
    if found:
        raise ConfigError(
            f"{'; '.join(found)}: this cannot change while the cluster runs, `baleen down` and `baleen up` do it"
        )


def require_same_text(old: ClusterConfig, new: ClusterConfig, default: Path) -> None:
    """Raise ConfigError if clients would see another name of the model, or its tokens mean another text.

    default: the checkpoint of a cluster that names none.
    """
    was, will = (Path(config.model.path) if config.model else default for config in (old, new))
    names = [config.model_name or path.name for config, path in ((old, was), (new, will))]
    if names[0] != names[1]:
        raise ConfigError(
            f"model_name is {names[0]!r} to clients and would be {names[1]!r}: it cannot change while the cluster "
            f"runs; set it to {names[0]!r}"
        )
    if was != will and _tokenizer(was) != _tokenizer(will):
        raise ConfigError(
            f"model.path is {will}, whose {TOKENIZER_FILE} differs from that of {was}: tokens of old and new groups "
            f"would mean different texts while both are there; `baleen down` and `baleen up` do it"
        )


def alike(one: Service, other: Service) -> bool:
    """Whether the groups of two services of a pool are the same, however many there are of them."""
    return _essence(one) == _essence(other)


def plan_of(service: Service) -> GroupPlan:
    """What the groups of a pool's service are built from."""
    plan = service.arguments[0]
    assert isinstance(plan, GroupPlan)
    return plan


def model_of(config: ClusterConfig, default: Path) -> ModelConfig:
    """The model that a cluster serves."""
    return config.model or ModelConfig(path=str(default))


def _essence(service: Service) -> tuple[GroupPlan, str]:
    plan = plan_of(service)
    sizes = {name: getattr(_SIZES, name) for name in ("groups", "min_groups", "max_groups", "target_load", "quiet_s")}
    return replace(plan, spare=0, pool=replace(plan.pool, **sizes)), service.version


def _at(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found[part]
    return found


def _differences(before: Any, after: Any, key: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in before:
            yield from _differences(before[name], after[name], f"{key}.{name}")
    elif before != after:
        # a URL may hold a password
        values = "" if key == "redis.url" else f" from {before!r} to {after!r}"
        yield f"{key} would change{values}"


def _tokenizer(checkpoint: Path) -> bytes | None:
    path = checkpoint / TOKENIZER_FILE
    return path.read_bytes() if path.exists() else None
