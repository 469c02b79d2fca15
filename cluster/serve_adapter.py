"""Ray Serve, as far as the rest of baleen knows it: services in, states out. Imported only where it is used."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from baleen.errors import BaleenError
from cluster.service import ABSENT, Service, ServiceState, service_name

_HEALTH_PERIOD_S = 0.5
_STARTS = 3

_REPORT_PERIOD_S = 1.0
"""How often a group that scales reports its load."""


def deploy(services: Sequence[Service]) -> None:
    """Start Serve without proxies, since no token passes through it, and all services at once. Does not wait.

    One that runs already under the same version gets or loses replicas, and all that starts from now on is built from
    what is given here. Raises BaleenError if Serve does not take them.
    """
    _be_quiet()
    targets = [
        serve.RunTarget(target=_application(service), name=service.name, route_prefix=None) for service in services
    ]
    try:
        serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False, "log_level": "WARNING"})
        serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    except (RayError, RuntimeError, TimeoutError) as error:
        names = ", ".join(service.name for service in services)
        raise BaleenError(f"Serve does not take {names}: {error}") from error


def _be_quiet() -> None:
    # what goes wrong stands in the states; the rest is of no use to whoever waits
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def _application(service: Service) -> Any:
    placed: dict[str, Any] = {}
    # every node has one of its own address, also one that comes in the place of another
    at_address = {f"node:{service.address}": 0.001} if service.address else {}
    if service.bundles:
        placed = {
            "placement_group_bundles": list(service.bundles),
            "placement_group_strategy": service.strategy.upper(),
        }
    deployment: Any = serve.deployment(
        service.kind,
        name=service.name,
        ray_actor_options={"num_cpus": service.cpus, "resources": at_address},
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=30.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=service.leave_s,
        max_constructor_retry_count=_STARTS,
        **placed,
        **_number_of_replicas(service),
    )
    if service.version:
        # by itself Serve takes whatever is deployed for another version, and replaces all that runs
        deployment._version = service.version
    return deployment.bind(*service.arguments)


def _number_of_replicas(service: Service) -> dict[str, Any]:
    target = service.target
    if target is None:
        return {"num_replicas": service.replicas}
    with warnings.catch_warnings():
        # Serve means to replace the setting by a variable of the environment, which would hold for all pools
        warnings.simplefilter("ignore", DeprecationWarning)
        scaling = AutoscalingConfig(
            min_replicas=target.min_groups,
            max_replicas=target.max_groups,
            metrics_interval_s=_REPORT_PERIOD_S,
            look_back_period_s=5 * _REPORT_PERIOD_S,
            # the policy keeps its own time
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
            policy=AutoscalingPolicy(  # type: ignore[no-untyped-call]
                policy_function="cluster.scaling_policy.GroupScaling", policy_kwargs=asdict(target)
            ),
        )
    return {"autoscaling_config": scaling}


def states(services: Sequence[Service]) -> list[ServiceState]:
    """How far each service is."""
    applications = serve.status().applications
    found = []
    for service in services:
        application = applications.get(service.name)
        deployment = application.deployments.get(service.name) if application is not None else None
        if deployment is None:
            text = application.message if application is not None else ""
            state = str(application.status.value) if application is not None else ABSENT
            found.append(ServiceState(service.name, state, 0, service.replicas, text))
            continue
        counts = {str(state): count for state, count in deployment.replica_states.items()}
        # of one that scales, what there is beyond the least was asked for
        wanted = service.replicas
        if service.target is not None:
            wanted = max(wanted, sum(count for state, count in counts.items() if state != "STOPPING"))
        found.append(
            ServiceState(
                service.name,
                str(deployment.status.value),
                counts.get("RUNNING", 0),
                wanted,
                deployment.message,
                leaving=counts.get("STOPPING", 0),
            )
        )
    return found


def deployed(cluster: str) -> list[str]:
    """Names of the services of a cluster that Serve runs, if it runs at all."""
    return [name for name in serve.status().applications if name.startswith(service_name(cluster, ""))]


def remove(names: Sequence[str]) -> None:
    """Tell all replicas of these services to go. Does not wait."""
    _be_quiet()
    for name in names:
        serve.delete(name, _blocking=False)


def stop_serve() -> None:
    """End Serve itself, with whatever it still runs; for a Ray of one's own only."""
    serve.shutdown()  # type: ignore[no-untyped-call]
