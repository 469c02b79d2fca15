"""What Serve runs for a cluster: a deployment for each pool, whose replicas are groups, and one for the router."""

from __future__ import annotations

from pathlib import Path

from baleen.cluster_config import ClusterConfig
from baleen.config import ModelConfig
from baleen.redis_config import RedisConfig
from baleen.text.tokenizer import TOKENIZER_FILE
from cluster.group import GroupPlan, GroupReplica
from cluster.placement import bundles
from cluster.rank_launcher import KILL_AFTER_S
from cluster.router_replica import LEAVE_SLACK_S, RouterReplica
from cluster.scaling import target_of
from cluster.service import Service, service_name
from router.config import RouterProcessConfig


def services(
    config: ClusterConfig, model: ModelConfig, *, redis: RedisConfig, log_directory: str, router_node: str = ""
) -> list[Service]:
    """Everything that Serve runs. log_directory: where processes on this machine keep their logs; empty: they do not.

    redis: the server that all of them share. router_node: address of the node of all routers; empty: any.
    """
    # on one machine nothing needs to be reached from outside
    local_host = "" if config.ray.address else "127.0.0.1"
    pools = []
    for pool in config.pools:
        plan = GroupPlan(
            cluster=config.name,
            pool=pool,
            model=model,
            timeouts=config.group,
            telemetry=config.telemetry,
            redis=redis,
            tls=config.tls,
            transfer=config.transfer,
            local_host=local_host,
            log_directory=log_directory,
        )
        pools.append(
            Service(
                name=service_name(config.name, pool.name),
                kind=GroupReplica,
                arguments=(plan,),
                replicas=pool.least_groups,
                bundles=bundles(pool),
                strategy=pool.strategy,
                leave_s=config.group.drain_timeout_s + 3 * KILL_AFTER_S,
                target=target_of(pool, config.router.slo_first_token_s) if pool.scales else None,
            )
        )
    router = Service(
        name=service_name(config.name, "router"),
        kind=RouterReplica,
        arguments=(router_config(config, model, redis=redis), config.router.replicas, log_directory),
        replicas=config.router.replicas,
        cpus=config.router.cpus,
        address=router_node,
        leave_s=config.group.drain_timeout_s + 2 * LEAVE_SLACK_S,
    )
    return [*pools, router]


def router_config(config: ClusterConfig, model: ModelConfig, *, redis: RedisConfig) -> RouterProcessConfig:
    """The configuration of the first router. A checkpoint without a tokenizer is served for token ids only."""
    has_tokenizer = (Path(model.path) / TOKENIZER_FILE).exists()
    return RouterProcessConfig(
        listen=f"{config.router.host}:{config.router.port}",
        listen_metrics=f"{config.router.host}:{config.router.metrics_port}" if config.router.metrics_port else "",
        cluster=config.name,
        redis=redis,
        model=model.path if has_tokenizer else "",
        model_name=config.model_name or Path(model.path).name,
        policy=config.router.policy,
        slo_first_token_s=config.router.slo_first_token_s,
        max_queued=config.router.max_queued,
        drain_timeout_s=config.group.drain_timeout_s,
        traces=config.telemetry.traces,
        tls=config.tls,
    )
