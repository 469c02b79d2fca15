"""A step loop over a real scheduler with a fake model and a fake group."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future
from threading import Event

from baleen.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, RankConfig
from baleen.ids import RequestId
from baleen.model_spec import ModelSpec
from baleen.sampling import SamplingParams
from tests.support.clock import ManualClock
from tests.support.engine import EOS, FINGERPRINT, VOCAB_SIZE, FakeModel
from tests.support.fake_group import FakeGroup
from workers.cache.block_bytes import BlockBytes
from workers.cache.blocks import BlockCache
from workers.engine.batch import StepResult
from workers.engine.inbox import Inbox
from workers.engine.loop import StepLoop, StepRunner
from workers.engine.messages import (
    Destination,
    Fetch,
    Prefill,
    PrefillDone,
    Refused,
    ReleaseReservation,
    Reserve,
    StepReport,
    Submit,
)
from workers.engine.scheduler import Scheduler
from workers.transfer.moves import Moves


@dataclasses.dataclass
class Spec:
    """The part of a ModelSpec that the loop reads."""

    vocab_size: int = VOCAB_SIZE
    eos_token_ids: tuple[int, ...] = (EOS,)


@dataclasses.dataclass
class RealModel:
    """A model that computes, with the bytes of its cache."""

    spec: ModelSpec
    fingerprint: bytes
    runner: StepRunner
    cache: BlockBytes


class Rank:
    """A loop over a real scheduler, a fake model and a fake group. `journal` lists what happened, in order.

    make_transport: given the model's blocks, what moves them; the ManualClock is not the one of its threads. real: a
    model to take in place of the fake one.
    """

    def __init__(
        self,
        *,
        world_size=1,
        max_running=8,
        max_batch_tokens=256,
        max_chunk_tokens=256,
        max_waiting=64,
        num_blocks=32,
        prefix_cache=True,
        make_transport=None,
        real: RealModel | None = None,
    ):
        self.journal = []
        self.told = []
        self.events = []
        self.clock = ManualClock()
        self.group = FakeGroup(world_size=world_size, journal=self.journal)
        self.inbox = Inbox()
        fingerprint = real.fingerprint if real else FINGERPRINT
        self.blocks = BlockCache(num_blocks, fingerprint)
        self.model = real.runner if real else FakeModel(self.blocks)
        config = RankConfig(
            model=ModelConfig(path="none"),
            cache=CacheConfig(prefix_cache=prefix_cache),
            engine=EngineConfig(
                audit="step",
                max_batch_tokens=max_batch_tokens,
                max_chunk_tokens=max_chunk_tokens,
                max_running=max_running,
                max_waiting=max_waiting,
            ),
            parallel=ParallelConfig(drain_timeout_s=30.0),
        )
        self.scheduler = Scheduler(config.engine, self.blocks, self.clock, max_context=1024)
        self.transport = make_transport(real.cache if real else self.model) if make_transport else None
        self.moves = Moves(self.blocks, self.transport, self.clock, fingerprint=fingerprint, prefix_cache=prefix_cache)
        self.loop = StepLoop(
            config,
            real.spec if real else Spec(),
            scheduler=self.scheduler,
            runner=self,
            group=self.group,
            inbox=self.inbox,
            emit=self.emit,
            clock=self.clock,
            moves=self.moves,
        )
        self.error = None
        self.step_s = 0.01
        self._woken = Event()
        self.inbox.connect(self._woken.set)

    def run(self, batch, decode=None):
        self.journal.append("run" if batch else "serve")
        self.told.append(decode)
        self.clock.advance(self.step_s)
        if self.error is not None:
            raise self.error
        return self.model.run(batch) if batch else StepResult(())

    def emit(self, event):
        self.journal.append("emit")
        self.events.append(event)

    def submit(
        self,
        name,
        prompt=(1, 2, 3),
        *,
        deadline=None,
        salt="",
        priority=0,
        cache_salt="",
        num_delivered=0,
        ticket=None,
        **sampling,
    ):
        sampling = {"max_tokens": 3, "temperature": 0.0, "ignore_eos": True, "seed": 7, **sampling}
        self.inbox.put(
            Submit(
                request_id=RequestId(name),
                token_ids=tuple(prompt),
                sampling=SamplingParams(**sampling),
                deadline=deadline,
                priority=priority,
                cache_salt=cache_salt or salt,
                num_delivered=num_delivered,
                ticket=ticket,
            )
        )

    def prefill(self, name, prompt, reservation=None, *, salt="", deadline=None, ticket=None):
        """Compute a prompt's blocks here, for a reservation elsewhere."""
        to = reservation and Destination(reservation.address, reservation.ticket, reservation.num_held_blocks)
        self.inbox.put(
            Prefill(
                request_id=RequestId(name),
                token_ids=tuple(prompt),
                cache_salt=salt,
                destination=to,
                deadline=deadline,
                ticket=ticket,
            )
        )

    def fetch(self, prompt, reservation, *, salt="", timeout_s=60.0):
        """Ask for cached blocks and step once; the command, whose reply gets the answer."""
        command = Fetch(
            token_ids=tuple(prompt),
            cache_salt=salt,
            destination=Destination(reservation.address, reservation.ticket, reservation.num_held_blocks),
            deadline=self.clock.now() + timeout_s,
            reply=Future(),
        )
        self.inbox.put(command)
        self.steps(1)
        return command

    def reserve(self, prompt, *, salt="", timeout_s=60.0):
        """Ask for a reservation and step once; the Future of the answer."""
        reply = Future()
        self.inbox.put(Reserve(token_ids=tuple(prompt), cache_salt=salt, timeout_s=timeout_s, reply=reply))
        self.steps(1)
        return reply

    def release(self, reservation):
        self.inbox.put(ReleaseReservation(reservation.ticket))
        self.steps(1)

    def steps(self, count):
        for _ in range(count):
            self.loop.step()
            self.scheduler.check()
            self.moves.check()

    def step_until(self, happened, *others, looks=2000):
        """Step this rank and the others until `happened()`; between looks wait a little for news from threads."""
        for _ in range(looks):
            for rank in (self, *others):
                rank.steps(1)
            if happened():
                return
            self._woken.wait(0.005)
            self._woken.clear()
        raise AssertionError("it did not happen")

    @property
    def busy_blocks(self):
        """Blocks that are neither free nor only cached."""
        return self.blocks.num_held + self.blocks.num_lent + self.blocks.num_arriving

    @property
    def prefills_done(self):
        return [event for event in self.events if isinstance(event, PrefillDone)]

    def speed(self, name):
        return getattr(self.events[-1].load, name)

    @property
    def outputs(self):
        return [output for event in self.events if isinstance(event, StepReport) for output in event.outputs]

    @property
    def refused(self):
        return [event for event in self.events if isinstance(event, Refused)]

    def tokens_of(self, name):
        return [token.token_id for o in self.outputs if o.request_id == name for token in o.tokens]

    def finishes(self):
        return [(o.request_id, o.index, o.finish) for o in self.outputs if o.finish]
