"""Ports that a server hands over to the one that takes its place: for a while both listen there.

The system lets two processes of one user share a port if both ask for it, so that whoever does not take over from
another has to look first. Whoever does draws all new connections to itself: those that wait to be accepted end with the
socket that they wait at, so that the predecessor must get none by the time that it leaves.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

_SO_ATTACH_REUSEPORT_CBPF = 51
_RETURN_CONSTANT = 0x06
"""Of the packet filters of BSD."""


def split(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of `host:port`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def family_of(host: str) -> socket.AddressFamily:
    """Of an address; of a name the older one."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def require_unused(address: str) -> None:
    """Raise OSError if `host:port` cannot be listened on, as when anybody does already. Port 0 always can."""
    host, port = split(address)
    if port:
        socket.create_server((host, port), family=family_of(host)).close()


def is_taken(address: str) -> bool:
    """Whether anybody listens at `host:port`."""
    try:
        require_unused(address)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def listener(address: str, *, takes_over: bool) -> socket.socket:
    """A socket that listens at `host:port`, where its successor can listen as well.

    takes_over: so does its predecessor still. Raises OSError if it cannot be had.
    """
    if not takes_over:
        require_unused(address)
    host, port = split(address)
    found = socket.create_server((host, port), family=family_of(host), backlog=2048, reuse_port=True)
    if takes_over:
        _draw(found)
    return found


def draw_connections(address: str) -> None:
    """Have new connections come to this process alone, which listens at `host:port` after another one.

    For a server that keeps its socket to itself.
    """
    port = split(address)[1]
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError), socket.socket(fileno=os.dup(int(entry.name))) as found:
            # the host may stand there in another form
            if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and found.getsockname()[1] == port:
                _draw(found)


def _draw(listener: socket.socket) -> None:
    """Of the sockets that share its port the second one gets all connections, and so does one that is left alone."""
    step = struct.pack("HBBI", _RETURN_CONSTANT, 0, 0, 1)
    steps = ctypes.create_string_buffer(step)
    program = struct.pack("HL", 1, ctypes.addressof(steps))
    # a system that cannot do this deals connections out, and few of them end with the predecessor
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, program)
