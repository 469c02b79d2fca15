"""How gRPC connections are set up, the same at all ends: sizes and keepalive."""

from __future__ import annotations

import grpc.aio

from baleen.tls_config import TlsConfig

MAX_MESSAGE_BYTES = 64 << 20
"""A prompt of 160,000 tokens is half a megabyte."""

SESSION_KEY = "x-session"
"""Metadata that names a router's session; reservations made under the same name end with it."""

Options = tuple[tuple[str, int], ...]

_SIZES: Options = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)

SERVER_OPTIONS: Options = (
    *_SIZES,
    # two processes must not share a port by accident: the second fails to start instead
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # a client that pings as CHANNEL_OPTIONS says is no attacker
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)

SHARING_SERVER_OPTIONS: Options = (
    *(option for option in SERVER_OPTIONS if option[0] != "grpc.so_reuseport"),
    ("grpc.so_reuseport", 1),
)
"""Of a server whose successor listens at the same port before it leaves; see baleen.ports."""

CHANNEL_OPTIONS: Options = (
    *_SIZES,
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # each channel has its own connection, so that one slow peer is one slow stream
    ("grpc.use_local_subchannel_pool", 1),
    # a rank that comes back is found soon
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


def open_channel(address: str, *extra: tuple[str, int], tls: TlsConfig | None = None) -> grpc.aio.Channel:
    """A channel to `host:port`; it connects when it is first used. `extra`: options beside CHANNEL_OPTIONS.

    tls: of peers inside the cluster. Raises ConfigError if one of its files cannot be used.
    """
    options: list[tuple[str, int | str]] = [*CHANNEL_OPTIONS, *extra]
    if tls is None or not tls.enabled:
        return grpc.aio.insecure_channel(address, options=options)
    ca, cert, key = tls.pem()
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)
    return grpc.aio.secure_channel(address, credentials, options=options)
