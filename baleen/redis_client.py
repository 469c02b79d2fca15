"""Clients of the cluster's Redis: every wait has an end, nothing is tried again, and TLS always checks the server."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from redis.credentials import CredentialProvider
from redis.maint_notifications import MaintNotificationsConfig

from baleen.errors import ConfigError
from baleen.redis_config import RedisConfig


class _Credentials(CredentialProvider):
    """Reads user and password for each new connection, so that a password may be replaced while processes run."""

    def __init__(self, config: RedisConfig) -> None:
        self._config = config

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            user, password = self._config.credentials()
        except ConfigError as error:
            raise redis.AuthenticationError(str(error)) from error
        return (user, password) if user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def open_client(config: RedisConfig | str, *, socket_timeout_s: float) -> redis.Redis:
    """A client whose every wait for the server ends after `socket_timeout_s`. Connects when first used."""
    config, options = _options(config, socket_timeout_s, socket_timeout_s)
    kind = {
        "redis": redis.Connection,
        "rediss": redis.SSLConnection,
        "unix": redis.UnixDomainSocketConnection,
    }[config.scheme]
    client = redis.Redis.from_pool(redis.ConnectionPool(connection_class=kind, **options))
    return client


def open_async_client(
    config: RedisConfig | str, *, socket_timeout_s: float, connect_timeout_s: float, most_connections: int
) -> redis.asyncio.Redis:
    """The same for an event loop. Who finds all connections in use waits for one up to `connect_timeout_s`."""
    config, options = _options(config, socket_timeout_s, connect_timeout_s)
    kind = {
        "redis": redis.asyncio.Connection,
        "rediss": redis.asyncio.SSLConnection,
        "unix": redis.asyncio.UnixDomainSocketConnection,
    }[config.scheme]
    pool = redis.asyncio.BlockingConnectionPool(
        connection_class=kind, max_connections=most_connections, timeout=connect_timeout_s, **options
    )
    return redis.asyncio.Redis.from_pool(pool)


def _options(
    given: RedisConfig | str, socket_timeout_s: float, connect_timeout_s: float
) -> tuple[RedisConfig, dict[str, Any]]:
    """Options of a connection; a URL alone is a configuration too.

    retry=None is said aloud: with the default policy of `redis.Redis()` a call waits for many times its own timeout.
    """
    config = RedisConfig(url=given) if isinstance(given, str) else given
    options: dict[str, Any] = {
        **config.address(),
        "socket_timeout": socket_timeout_s,
        "socket_connect_timeout": connect_timeout_s,
        "retry": None,
        "protocol": 2,
        # nothing is sent but what was asked for: an ACL user may lack CLIENT
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    if config.password_env or config.password_file or any(config.credentials()):
        options["credential_provider"] = _Credentials(config)
    if config.scheme == "rediss":
        options |= {
            "ssl_cert_reqs": "required",
            "ssl_check_hostname": True,
            "ssl_ca_certs": config.ca_file or None,
            "ssl_certfile": config.cert_file or None,
            "ssl_keyfile": config.key_file or None,
        }
    return config, options
