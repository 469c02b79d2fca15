"""How the Redis server of a cluster is reached: its URL, as whom, and with which certificates. Holds no connection.

A password may stand in a file or in the environment of the processes that connect, so that no configuration needs to
hold it. Nothing here ever shows one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from baleen.errors import ConfigError

SCHEMES = ("redis", "rediss", "unix")
_SUPPORTED = "must be redis://host:port/db, rediss://host:port/db or unix:///path?db=db of one server"


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisConfig:
    """Where ranks and routers find each other and each other's prefixes. url empty: a server of the cluster's own.

    url: rediss:// speaks TLS and checks the server's name. username: of an ACL user; its password stands in the
    variable password_env or in password_file, on every machine that connects, and is read for each connection.
    ca_file: certificates to trust instead of the system's. cert_file and key_file: a certificate of one's own.
    """

    url: str = ""
    username: str = ""
    password_env: str = ""
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError on a URL of another kind, or settings that contradict each other."""
        if not self.url:
            for name in self.__slots__:
                _require(not getattr(self, name), f"redis.{name} is set and redis.url is empty: nobody would use it")
            return
        parts = self._parts()
        _require(
            not (self.password_env and self.password_file),
            "redis.password_env and redis.password_file are both set, must be one of them",
        )
        password_elsewhere = bool(self.password_env or self.password_file)
        _require(
            not (parts.password and password_elsewhere),
            "redis.url holds a password and redis.password_env or redis.password_file is set, must be one of them",
        )
        _require(
            not (parts.username and self.username),
            f"redis.url names the user {parts.username!r} and redis.username is {self.username!r}, must be one of them",
        )
        _require(
            not self.username or password_elsewhere or bool(parts.password),
            f"redis.username is {self.username!r} without a password, must come with redis.password_env or "
            f"redis.password_file",
        )
        for name in ("ca_file", "cert_file", "key_file"):
            _require(
                not getattr(self, name) or parts.scheme == "rediss",
                f"redis.{name} is set and redis.url is {self.shown}, must be rediss:// to use it",
            )
        _require(
            bool(self.cert_file) == bool(self.key_file),
            "redis.cert_file and redis.key_file must be set together",
        )

    @property
    def scheme(self) -> str:
        """One of SCHEMES."""
        return self._parts().scheme

    @property
    def shown(self) -> str:
        """The URL without user, password and options, for people."""
        scheme, separator, rest = self.url.partition("://")
        return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"

    def __repr__(self) -> str:
        return f"RedisConfig({self.shown})"

    def address(self) -> dict[str, str | int]:
        """Host and port or path, and db, as redis-py names them."""
        parts = self._parts()
        if parts.scheme == "unix":
            return {"path": unquote(parts.path), "db": int(dict(parse_qsl(parts.query)).get("db", 0))}
        assert parts.hostname is not None
        return {"host": parts.hostname, "port": parts.port or 6379, "db": int(parts.path.strip("/") or 0)}

    def credentials(self) -> tuple[str, str]:
        """User and password as they are now; empty where there are none. Raises ConfigError if one cannot be read."""
        parts = self._parts()
        return self.username or unquote(parts.username or ""), self._password(parts)

    def _password(self, parts: SplitResult) -> str:
        if self.password_env:
            password = os.environ.get(self.password_env, "")
            _require(
                bool(password),
                f"redis.password_env is {self.password_env}, which is not set in the environment of this process",
            )
            return password
        if self.password_file:
            try:
                password = Path(self.password_file).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
                raise ConfigError(f"redis.password_file is {self.password_file}: {reason}") from None
            _require(bool(password), f"redis.password_file is {self.password_file}, which is empty")
            return password
        return unquote(parts.password or "")

    def _parts(self) -> SplitResult:
        # an error of urlsplit quotes what it could not read, which may be a password
        scheme = self.url.partition("://")[0]
        if "sentinel" in scheme:
            raise ConfigError(
                f"redis.url is {self.shown}: Sentinel is not asked for the primary; {_SUPPORTED}, or an address that "
                f"follows the primary"
            )
        _require(scheme in SCHEMES and "://" in self.url, f"redis.url is {self.shown!r}, {_SUPPORTED}")
        hosts = self.shown.partition("://")[2].partition("/")[0]
        _require("," not in hosts, f"redis.url is {self.shown!r}, which names several servers; {_SUPPORTED}")
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            raise ConfigError(f"redis.url is {self.shown!r}, which has no readable port; {_SUPPORTED}") from None
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if scheme == "unix":
            _require(parts.path.startswith("/"), f"redis.url is {self.shown!r}, {_SUPPORTED}")
            db = options.pop("db", "0")
        else:
            _require(bool(parts.hostname) and port != 0, f"redis.url is {self.shown!r}, {_SUPPORTED}")
            db = parts.path.strip("/") or "0"
        _require(db.isdecimal(), f"redis.url is {self.shown!r} with the db {db!r}, must be a number")
        _require(
            not options and not parts.fragment,
            f"redis.url is {self.shown!r} with the options {', '.join(options) or '#'}, must have none: what they "
            "would say has keys of its own under redis",
        )
        return parts


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
