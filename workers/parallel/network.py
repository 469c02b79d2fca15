"""Which network interface owns an address: gloo and NCCL want interface names."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from baleen.errors import ConfigError

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface


def interface_of(host: str) -> str:
    """Name of the interface whose IPv4 address `host` is or resolves to. Raises ConfigError with what there is."""
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        raise ConfigError(f"parallel.host is {host!r}: {error}") from error
    addresses = _ipv4_addresses()
    for name, owned in addresses.items():
        if owned == address:
            return name
    if address.startswith("127."):
        return "lo"
    present = ", ".join(f"{name} {owned}" for name, owned in addresses.items())
    raise ConfigError(f"parallel.host is {host!r} ({address}), must be an IPv4 address of this machine: {present}")


def _ipv4_addresses() -> dict[str, str]:
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # an interface without an IPv4 address
            found[name] = socket.inet_ntoa(reply[20:24])
    return found


def use_interface_of(host: str) -> None:
    """Make gloo and NCCL use the interface that peers know this rank by; an operator's own choice stays.

    Without this gloo resolves the machine's name, which may be an address that peers cannot reach.
    """
    name = interface_of(host)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, name)
