"""TLS of the connections inside a cluster: both ends show a certificate that the cluster's own authority has signed.

Each process reads the files when it starts, and again for each connection that gRPC opens. TLS 1.3 only.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from baleen.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig:
    """PEM files, on every machine: all three, or none for connections in the clear.

    ca_file: the authority; whoever has a certificate of it is trusted, so it should sign nothing else. cert_file and
    key_file: this process's own. server_name: the name that every certificate carries; empty: each carries the
    address or host name that its owner is reached at.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError on a part of the whole."""
        missing = [name for name in ("ca_file", "cert_file", "key_file") if not getattr(self, name)]
        if missing and (len(missing) < 3 or self.server_name):
            raise ConfigError(f"tls.{missing[0]} is missing: tls needs ca_file, cert_file and key_file")

    @property
    def enabled(self) -> bool:
        """Whether connections speak TLS."""
        return bool(self.ca_file)

    def server_context(self) -> ssl.SSLContext:
        """For those who listen. Raises ConfigError if a file cannot be used."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def client_context(self) -> ssl.SSLContext:
        """For those who connect; the peer's name is checked. Raises ConfigError if a file cannot be used."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def pem(self) -> tuple[bytes, bytes, bytes]:
        """Authority, certificate and key as they are in the files. Raises ConfigError if one cannot be used."""
        # gRPC says little about what is wrong with a file
        self.server_context()
        return Path(self.ca_file).read_bytes(), Path(self.cert_file).read_bytes(), Path(self.key_file).read_bytes()

    def _context(self, side: int) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(self.ca_file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"tls.ca_file is {self.ca_file!r}, which cannot be used: {error}") from error
        try:
            context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"tls.cert_file is {self.cert_file!r} and tls.key_file is {self.key_file!r}, which cannot be used: "
                f"{error}"
            ) from error
        return context
