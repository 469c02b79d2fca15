"""What Serve runs for a cluster: deployments of its pools, whose replicas are groups, of the router and the gateway."""

from __future__ import annotations

from pathlib import Path

from baleen.cluster_config import ClusterConfig
from baleen.config import ModelConfig
from baleen.redis_config import RedisConfig
from baleen.text.tokenizer_files import TOKENIZER_FILE
from cluster.group import GroupPlan, GroupReplica
from cluster.placement import bundles
from cluster.rank_launcher import KILL_AFTER_S
from cluster.run_state import accounts_file
from cluster.scaling import target_of
from cluster.service import Service, serves_http, service_name
from cluster.serving_child import LEAVE_SLACK_S
from cluster.serving_replica import GatewayReplica, RouterReplica
from router.config import RouterProcessConfig
from router.gateway.config import GatewayProcessConfig


def services(
    config: ClusterConfig, model: ModelConfig, *, redis: RedisConfig, log_directory: str, router_node: str = ""
) -> list[Service]:
    """Everything that Serve runs. log_directory: where processes on this machine keep their logs; empty: they do not.

    redis: the server that all of them share. router_node: address of the node of routers and gateways; empty: any.
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
        arguments=(router_config(config, model, redis=redis), config.router.replicas, config.name, log_directory),
        replicas=config.router.replicas,
        cpus=config.router.cpus,
        address=router_node,
        leave_s=config.group.drain_timeout_s + 2 * LEAVE_SLACK_S,
    )
    gateways = []
    if serves_http(config):
        gateways.append(
            Service(
                name=service_name(config.name, "gateway"),
                kind=GatewayReplica,
                arguments=(gateway_config(config, model), config.gateway.replicas, config.name, log_directory),
                replicas=config.gateway.replicas,
                # where the routers are, and one file of accounts
                address=router_node,
                leave_s=config.group.drain_timeout_s + 2 * LEAVE_SLACK_S,
            )
        )
    return [*pools, router, *gateways]


def gateway_config(config: ClusterConfig, model: ModelConfig) -> GatewayProcessConfig:
    """The configuration of the first gateway."""
    return GatewayProcessConfig(
        listen=f"{config.gateway.host}:{config.gateway.port}",
        routers=config.router.addresses,
        model=model.path,
        model_name=config.model_name or Path(model.path).name,
        accounts=str(accounts_file(config)),
        settings=config.gateway,
        drain_timeout_s=config.group.drain_timeout_s,
    )


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
