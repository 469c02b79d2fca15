"""What a running cluster leaves for other commands to find: one file, locked for as long as its `baleen up` lives."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType

from baleen.cluster_config import ClusterConfig
from baleen.config_file import from_dict
from baleen.errors import ConfigError
from baleen.redis_config import RedisConfig
from baleen.tls_config import TlsConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A running cluster. directory: all its files, removed when it ends. phase: starting or ready.

    routers: the address of each replica. groups: running and wanted, of each pool, as of the last second.
    notice: what is wrong with the cluster as a whole, or an empty text.
    """

    name: str
    pid: int
    phase: str = "starting"
    routers: tuple[str, ...] = ()
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    redis: RedisConfig = field(default_factory=RedisConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    directory: str = ""
    notice: str = ""


def run_directory() -> Path:
    """Where the state files lie: of this user, gone with the login session where the system keeps such a place."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "baleen" if runtime else cache_directory() / "run"


def cache_directory() -> Path:
    """Where things lie that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baleen"


def accounts_file(config: ClusterConfig) -> Path:
    """Where the accounts of a cluster's gateways lie."""
    if config.gateway.keys.database:
        return Path(config.gateway.keys.database)
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "baleen" / config.name / "accounts.db"


class StateFile:
    """The state of one cluster, held by the process that runs it; a context manager that takes the file away.

    The lock ends with the process, so that a state without one is known to be of a process that died.
    """

    def __init__(self, name: str) -> None:
        """Claim the name. Raises ConfigError if a cluster of that name runs."""
        directory = run_directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / f"{name}.json"
        # a URL may hold the password of Redis
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise ConfigError(f"a cluster named {name!r} runs already ({self._path}); `baleen down` ends it") from error
        self.write(RunState(name=name, pid=os.getpid()))

    def write(self, state: RunState) -> None:
        """Replace what others read."""
        text = json.dumps(asdict(state)).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def __enter__(self) -> StateFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class FoundState:
    """A state file as another process finds it. alive: its `baleen up` still runs."""

    state: RunState
    path: Path
    alive: bool


def find_state(name: str) -> FoundState:
    """The cluster of that name. Raises ConfigError that says where it was looked for, and what else runs."""
    path = run_directory() / f"{name}.json"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        others = sorted(other.stem for other in path.parent.glob("*.json"))
        also = f"; there is {', '.join(others)}" if others else ""
        raise ConfigError(f"no cluster named {name!r} runs here ({path}: {error.strerror}){also}") from error
    try:
        text = os.pread(descriptor, 1 << 16, 0)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            alive = False
        except OSError:
            alive = True
    finally:
        os.close(descriptor)
    try:
        return FoundState(_parse(json.loads(text)), path, alive)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no state of a cluster: {error}") from error


def find_running(name: str) -> RunState:
    """The cluster of that name, if it runs. Raises ConfigError if it does not, or not yet."""
    found = find_state(name)
    if not found.alive:
        raise ConfigError(
            f"cluster {name!r} has ended without order (process {found.state.pid}); `baleen down` clears what it left"
        )
    if found.state.phase != "ready":
        raise ConfigError(f"cluster {name!r} is {found.state.phase}")
    return found.state


def _parse(raw: object) -> RunState:
    if not isinstance(raw, Mapping):
        raise ValueError("not an object")
    known = {known.name for known in fields(RunState)}
    values = {name: value for name, value in raw.items() if name in known}
    groups = {pool: (int(running), int(wanted)) for pool, (running, wanted) in values.get("groups", {}).items()}
    redis = from_dict(RedisConfig, values.get("redis", {}), key="redis")
    tls = from_dict(TlsConfig, values.get("tls", {}), key="tls")
    routers = tuple(values.get("routers", ()))
    return RunState(**{**values, "routers": routers, "groups": groups, "redis": redis, "tls": tls})
