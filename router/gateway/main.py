"""One gateway process: puts the parts together, serves until it is told to stop, drains."""

from __future__ import annotations

from pathlib import Path

from baleen.clock import Clock, SystemClock
from baleen.errors import ConfigError, NotReady
from baleen.telemetry import Log
from baleen.text.chat_format import FORMATS, format_of
from baleen.text.tokenizer import load_tokenizer
from router.gateway.accounts.accounts import Accounts
from router.gateway.accounts.money import PriceList
from router.gateway.app import application
from router.gateway.auth import is_loopback, loopback_hosts
from router.gateway.chat.request import ChatLimits
from router.gateway.config import GatewayProcessConfig
from router.gateway.core import Core, HttpLimits
from router.gateway.engine import Engine
from router.gateway.http_server import HttpServer
from router.gateway.models import ModelNames
from router.gateway.routers import Routers
from router.gateway.streams import Streams


class Gateway:
    """One gateway, from `start` to `stop`, for one event loop."""

    def __init__(self, config: GatewayProcessConfig, *, clock: Clock | None = None, log: Log | None = None) -> None:
        """Raises CheckpointError or ConfigError if the tokenizer or the accounts cannot be used."""
        self._config = config
        settings = config.settings
        self._log = log or Log(config.log_level, part="gateway")
        clock = clock or SystemClock()
        tokenizer = load_tokenizer(Path(config.model))
        if tokenizer is None:
            raise ConfigError(f"{config.model} has no tokenizer.json, without which a gateway cannot serve text")
        name = format_of(tokenizer) if settings.chat_format == "auto" else settings.chat_format
        accounts = Path(config.accounts)
        accounts.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._core = Core(
            engine=Engine(
                Routers(config.routers, log=self._log), tokenizer, FORMATS[name], deadline_s=settings.max_request_s
            ),
            names=ModelNames(config.model_name),
            limits=ChatLimits(max_output=settings.max_output_tokens, missing_reasoning=settings.missing_reasoning),
            accounts=Accounts(accounts, PriceList(settings.prices), clock=clock, log=self._log),
            clock=clock,
            log=self._log,
            http=HttpLimits(
                max_body_bytes=settings.max_body_mib << 20,
                max_active=settings.max_active,
                keep_alive_s=settings.keep_alive_s,
            ),
            streams=Streams(keep_s=settings.resume_s, max_bytes=settings.resume_mib << 20),
        )
        mode = settings.keys.mode
        self._check_keys = mode == "required" or (mode == "auto" and not is_loopback(config.host))
        hosts = loopback_hosts(config.host) if is_loopback(config.host) else None
        self._app = application(self._core, check_keys=self._check_keys, hosts=hosts)
        self._http = HttpServer(
            self._app, config.listen, drain_timeout_s=config.drain_timeout_s, takes_over=config.takes_over
        )

    @property
    def core(self) -> Core:
        """What its endpoints share."""
        return self._core

    async def start(self) -> str:
        """Listen; returns the address. Raises ConfigError if that is taken, or no key exists where keys are needed."""
        num_keys = await self._core.accounts.start()
        if self._check_keys and not num_keys:
            await self._core.accounts.close()
            raise ConfigError(
                f"there is no API key in {self._config.accounts}, and nobody could call this gateway: "
                f"`baleen keys create --tenant NAME` makes one"
            )
        if not self._check_keys and not is_loopback(self._config.host):
            self._log.warning("everybody who reaches the gateway may use it: gateway.keys.mode is open")
        try:
            await self._core.prepare()
        except NotReady as error:
            self._log.warning("the model is not served yet", error=str(error))
        address = await self._http.start()
        self._log.info("gateway listens", address=address, keys=self._check_keys)
        return address

    async def stop(self) -> None:
        """Take no new requests, let the running ones end, and leave."""
        await self._http.stop()
        await self._core.streams.close()
        await self._core.engine.routers.close()
        await self._core.accounts.close()
        self._log.info("gateway left")
