"""What every gRPC server of ours has: sizes and keepalive, standard health, reflection, a port of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from baleen.errors import ConfigError
from baleen.tls_config import TlsConfig
from baleen.wire.channel import SERVER_OPTIONS


class Health:
    """The states that `grpc.health.v1` reports: the process as a whole under an empty name, and each service."""

    def __init__(self, server: grpc.aio.Server, services: tuple[str, ...]) -> None:
        """`services`: full names. Nothing serves yet."""
        self._names = ("", *services)
        # the stubs know the threaded servicer only
        asynchronous: Any = health
        self._servicer: Any = asynchronous.aio.HealthServicer()
        self._states: dict[str, bool] = {}
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, name: str, serving: bool) -> None:
        """State of one service, or of the process with an empty name; watchers learn of a change."""
        assert name in self._names
        if self._states.get(name) is not serving:
            self._states[name] = serving
            states = health_pb2.HealthCheckResponse
            await self._servicer.set(name, states.SERVING if serving else states.NOT_SERVING)

    async def set_all(self, serving: bool) -> None:
        """State of the process and of all services."""
        for name in self._names:
            await self.set(name, serving)


def new_server(*services: str) -> tuple[grpc.aio.Server, Health]:
    """A server with health and reflection for services of these full names; to be called in its event loop."""
    server = grpc.aio.server(options=SERVER_OPTIONS)
    states = Health(server, services)
    reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server, states


def listen(server: grpc.aio.Server, address: str, tls: TlsConfig) -> str:
    """Take `host:port`; returns it with the real port. Raises ConfigError if it, or a file of `tls`, cannot be had."""
    try:
        if tls.enabled:
            ca, cert, key = tls.pem()
            credentials = grpc.ssl_server_credentials([(key, cert)], root_certificates=ca, require_client_auth=True)
            port = server.add_secure_port(address, credentials)
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"{address} cannot be listened on: it is in use, or no address of this machine") from error
    return f"{address.rpartition(':')[0]}:{port}"


def metadata_of(context: grpc.aio.ServicerContext[Any, Any]) -> Mapping[str, str]:
    """The text metadata of a call; of a key that comes twice, the last."""
    pairs: Any = context.invocation_metadata() or ()
    return {key: value for key, value in pairs if isinstance(value, str)}
