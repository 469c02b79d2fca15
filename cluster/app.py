"""What Serve runs for a cluster: deployments of its pools, whose replicas are groups, of the router and the gateway."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a cluster runs. redis: the server that all of it shares.

    log_directory: where processes on this machine keep their logs; empty: they do not. router_node: address of the node
    of routers and gateways; empty: any. version: of the pools' services, see Service.
    """

    redis: RedisConfig
    log_directory: str = ""
    router_node: str = ""
    version: str = ""


def pool_services(config: ClusterConfig, model: ModelConfig, site: Site) -> dict[str, Service]:
    """The service of each pool, by the name of the pool."""
    # on one machine nothing needs to be reached from outside
    local_host = "" if config.ray.address else "127.0.0.1"
    found = {}
    for pool in config.pools:
        plan = GroupPlan(
            cluster=config.name,
            pool=pool,
            model=model,
            timeouts=config.group,
            telemetry=config.telemetry,
            redis=site.redis,
            tls=config.tls,
            transfer=config.transfer,
            local_host=local_host,
            log_directory=site.log_directory,
        )
        found[pool.name] = Service(
            name=service_name(config.name, pool.name),
            kind=GroupReplica,
            arguments=(plan,),
            replicas=pool.least_groups,
            bundles=bundles(pool),
            strategy=pool.strategy,
            leave_s=config.group.drain_timeout_s + 3 * KILL_AFTER_S,
            target=target_of(pool, config.router.slo_first_token_s) if pool.scales else None,
            version=site.version,
        )
    return found


def serving_services(config: ClusterConfig, model: ModelConfig, site: Site) -> list[Service]:
    """The router's, and the gateway's if there is one."""
    router = router_config(config, model, redis=site.redis)
    found = [
        Service(
            name=service_name(config.name, "router"),
            kind=RouterReplica,
            arguments=(router, config.router.replicas, config.name, site.log_directory),
            replicas=config.router.replicas,
            cpus=config.router.cpus,
            address=site.router_node,
            leave_s=config.group.drain_timeout_s + 2 * LEAVE_SLACK_S,
        )
    ]
    if serves_http(config):
        gateway = gateway_config(config, model)
        found.append(
            Service(
                name=service_name(config.name, "gateway"),
                kind=GatewayReplica,
                arguments=(gateway, config.gateway.replicas, config.name, site.log_directory),
                replicas=config.gateway.replicas,
                # where the routers are, and one file of accounts
                address=site.router_node,
                leave_s=config.group.drain_timeout_s + 2 * LEAVE_SLACK_S,
            )
        )
    return found


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
