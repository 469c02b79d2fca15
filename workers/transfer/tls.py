"""TLS around the sockets of a transfer: who wraps what, and what a failed handshake means in words."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

from baleen.tls_config import TlsConfig
from workers.transfer.transport import TransferError

_HANDSHAKE = 0x16
"""First byte of every TLS connection."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Both sides of one rank. server_name: as in TlsConfig."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    server_name: str

    @classmethod
    def open(cls, config: TlsConfig) -> Tls | None:
        """None for connections in the clear. Raises ConfigError if a file cannot be used."""
        if not config.enabled:
            return None
        server = config.server_context()
        # nobody resumes a transfer
        server.num_tickets = 0
        return cls(server, config.client_context(), config.server_name)

    def wrap_accepted(self, sock: socket.socket) -> ssl.SSLSocket:
        """The same connection; its handshake is still to come. `sock` is used up. Raises OSError."""
        return self.server.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)

    def wrap_unconnected(self, sock: socket.socket, host: str) -> ssl.SSLSocket:
        """For a connection to `host`, with a handshake after the connect. `sock` is used up."""
        return self.client.wrap_socket(sock, server_hostname=self.server_name or host, do_handshake_on_connect=False)


def shake_hands(sock: ssl.SSLSocket) -> None:
    """The handshake of either side. Raises TransferError that says what the peer lacks, TimeoutError."""
    try:
        sock.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise TransferError(f"the peer's certificate is refused: {error.verify_message}") from error
    except TimeoutError:
        raise
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        raise TransferError(f"no TLS handshake ({reason}): the peer hung up or speaks plain TCP") from error


def speaks_tls(first: bytes) -> bool:
    """Whether the first bytes of a connection are those of TLS."""
    return first[:1] == bytes([_HANDSHAKE])
