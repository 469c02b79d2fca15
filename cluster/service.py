"""What Serve is asked to run and what it says of that, without Serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baleen.cluster_config import ClusterConfig
from baleen.errors import BaleenError, CheckpointError, ConfigError
from baleen.text.tokenizer_files import TOKENIZER_FILE
from cluster.scaling import Target

ABSENT = "NOT_STARTED"
"""The state of a service that Serve does not know, or no more."""

_FINAL = {kind.__name__: kind for kind in (ConfigError, CheckpointError)}
_OURS = f"{BaleenError.__module__}."


def service_name(cluster: str, part: str, generation: int = 1) -> str:
    """Name of a pool's or the router's service; other clusters may run on the same Ray.

    No name of a cluster or a part has a dot, so that no two clusters share one. generation: counts the services that a
    pool has had, of which two run side by side while one takes the place of the other.
    """
    return f"{cluster}.{part}" + (f"@{generation}" if generation > 1 else "")


def serves_http(config: ClusterConfig) -> bool:
    """Whether there is a gateway: wanted, and with a tokenizer, without which it has no text."""
    # the demo model has one
    has_tokenizer = config.model is None or (Path(config.model.path) / TOKENIZER_FILE).exists()
    return config.gateway.replicas > 0 and has_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A deployment: `replicas` objects of a class, each with the same arguments. bundles: each owns a placement group.

    address: of the node that all replicas run on; empty: any. leave_s: time that a replica may take to go.
    target: how their number follows their load, which begins with `replicas`; None: it does not. version: a service
    that is deployed again under the same one keeps the replicas that it has, whatever else changes.
    """

    name: str
    kind: type
    arguments: tuple[object, ...]
    replicas: int
    cpus: float = 0.0
    bundles: Sequence[dict[str, float]] = ()
    strategy: str = "PACK"
    address: str = ""
    leave_s: float = 20.0
    target: Target | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """How far a service is. state: Serve's own word. message: the last thing that went wrong, or an empty text.

    leaving: replicas that have been told to go, and are not among the running.
    """

    name: str
    state: str
    running: int
    wanted: int
    message: str
    leaving: int = 0

    @property
    def exists(self) -> bool:
        """Whether Serve knows it."""
        return self.state != ABSENT

    @property
    def up(self) -> bool:
        """Whether all replicas serve."""
        return self.state == "HEALTHY" and self.running == self.wanted

    @property
    def given_up(self) -> bool:
        """Whether Serve has tried often enough."""
        return self.state == "DEPLOY_FAILED"

    @property
    def final_error(self) -> BaleenError | None:
        """Why it will never start, however often it is tried: its configuration or its checkpoint is wrong."""
        name, _, text = self.last_words.partition(": ")
        kind = _FINAL.get(name)
        return kind(text) if kind is not None else None

    @property
    def last_words(self) -> str:
        """The error itself, from the traceback that Serve hands on."""
        lines = [line.strip() for line in self.message.splitlines() if line.strip()]
        ours = [line for line in lines if line.startswith(_OURS)]
        return (ours or lines or ["no reason is known"])[-1].removeprefix(_OURS)
