"""What all endpoints of one gateway share: its routers, its model's names, accounts, limits and counts."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from baleen.clock import Clock
from baleen.errors import NotReady
from baleen.telemetry import Log
from baleen.v1 import inference_pb2
from router.gateway.accounts.accounts import Accounts
from router.gateway.chat.request import ChatLimits
from router.gateway.engine import Engine
from router.gateway.models import ModelNames
from router.gateway.streams import Streams

MAX_BODY_BYTES = 32 << 20
MAX_ACTIVE = 4096
KEEP_ALIVE_S = 10.0
STALL_S = 60.0
RESUME_S = 30.0
RESUME_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What a gateway takes from clients.

    max_active: requests at the same time; more are refused. keep_alive_s: silence after which a stream says that it is
    alive, and an answer in one piece gets an empty line. stall_s: how long a client may take nothing of its stream.
    """

    max_body_bytes: int = MAX_BODY_BYTES
    max_active: int = MAX_ACTIVE
    keep_alive_s: float = KEEP_ALIVE_S
    stall_s: float = STALL_S


@dataclass(slots=True, eq=False)
class Meters:
    """Counts of one gateway. requests: by endpoint and class of status; ends: by outcome."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    active: int = 0
    disconnects: int = 0
    stalls: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Core:
    """For one event loop. model: what the routers tell of it."""

    engine: Engine
    names: ModelNames
    limits: ChatLimits
    accounts: Accounts
    clock: Clock
    log: Log
    http: HttpLimits = field(default_factory=HttpLimits)
    meters: Meters = field(default_factory=Meters)
    streams: Streams = field(default_factory=lambda: Streams(keep_s=RESUME_S, max_bytes=RESUME_BYTES))
    model: inference_pb2.Model | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    async def prepare(self) -> None:
        """Learn of the model what is not known yet. Raises NotReady while nobody serves it."""
        if self.model is None:
            self.model = await self.engine.model()

    @property
    def max_context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._known.max_context

    @property
    def fingerprint(self) -> str:
        """Names the weights."""
        return f"fp_{self._known.fingerprint[:16]}"

    @property
    def _known(self) -> inference_pb2.Model:
        if self.model is None:
            raise NotReady("no rank serves the model yet")
        return self.model
