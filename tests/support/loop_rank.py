"""One rank with a real loop and scheduler, around a fake model and a fake group."""

import dataclasses

from baleen.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, RankConfig
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from tests.support.clock import ManualClock
from tests.support.engine import EOS, FINGERPRINT, VOCAB_SIZE, FakeModel
from tests.support.fake_group import FakeGroup
from workers.cache.blocks import BlockCache
from workers.engine.batch import StepResult
from workers.engine.inbox import Inbox
from workers.engine.loop import StepLoop
from workers.engine.messages import Refused, StepReport, Submit
from workers.engine.scheduler import Scheduler


@dataclasses.dataclass
class Spec:
    """The part of a ModelSpec that the loop reads."""

    vocab_size: int = VOCAB_SIZE
    eos_token_ids: tuple[int, ...] = (EOS,)


class Rank:
    """A loop over a real scheduler, a fake model and a fake group. `journal` lists what happened, in order."""

    def __init__(
        self,
        *,
        world_size=1,
        max_running=8,
        max_batch_tokens=256,
        max_chunk_tokens=256,
        max_waiting=64,
        prefix_cache=True,
    ):
        self.journal = []
        self.events = []
        self.clock = ManualClock()
        self.group = FakeGroup(world_size=world_size, journal=self.journal)
        self.inbox = Inbox()
        self.blocks = BlockCache(32, FINGERPRINT)
        self.model = FakeModel(self.blocks)
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
        self.loop = StepLoop(
            config,
            Spec(),
            scheduler=self.scheduler,
            runner=self,
            group=self.group,
            inbox=self.inbox,
            emit=self.emit,
            clock=self.clock,
        )
        self.error = None
        self.step_s = 0.01

    def run(self, batch):
        self.journal.append("run" if batch else "serve")
        self.clock.advance(self.step_s)
        if self.error is not None:
            raise self.error
        return self.model.run(batch) if batch else StepResult(())

    def emit(self, event):
        self.journal.append("emit")
        self.events.append(event)

    def submit(self, name, prompt=(1, 2, 3), *, deadline=None, priority=0, cache_salt="", **sampling):
        sampling = {"max_tokens": 3, "temperature": 0.0, "ignore_eos": True, "seed": 7, **sampling}
        self.inbox.put(
            Submit(
                request_id=RequestId(name),
                token_ids=tuple(prompt),
                sampling=SamplingParams(**sampling),
                deadline=deadline,
                priority=priority,
                cache_salt=cache_salt,
            )
        )

    def steps(self, count):
        for _ in range(count):
            self.loop.step()

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
