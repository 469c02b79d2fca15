"""Whatever arrives, is lent, expires, is claimed or aborted: blocks are conserved and contexts never mix."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from baleen.errors import CapacityError, InvalidRequest
from baleen.ids import RequestId
from tests.support.engine import VOCAB_SIZE, block_marks, make_requests
from tests.support.fake_transport import FakePush
from tests.support.scheduler_machine import SchedulerMachine, prompts
from workers.engine.messages import Destination, Prefill, PrefillDone, Reservation, Reserve
from workers.engine.submission import prefill_request
from workers.transfer.transport import BlockLanded, BlockPushed, LandingEnded, PushEnded


@dataclass(eq=False)
class Reserved:
    """A reservation as whoever asked for it knows it."""

    reservation: Reservation
    prompt: list[int]
    salt: str
    num_landed: int = 0


class TransferMachine(SchedulerMachine):
    """Transfers in both directions beside all that a scheduler does; a writer that was cut off may write garbage."""

    def begin_transfers(self) -> None:
        if not hasattr(self, "reserved"):
            self.reserved: list[Reserved] = []
            self.prefills: dict[RequestId, Prefill] = {}
            self.done: list[PrefillDone] = []

    @rule(prompt=prompts, salt=st.sampled_from(["", "", "x"]), timeout_s=st.sampled_from([2.0, 30.0]))
    def reserve(self, prompt: list[int], salt: str, timeout_s: float) -> None:
        self.begin_transfers()
        command = Reserve(token_ids=tuple(prompt), cache_salt=salt, timeout_s=timeout_s, reply=Future())
        reserve = self.engine.scheduler.num_spoken_for
        available = self.engine.blocks.num_available
        try:
            found = self.engine.moves.reservations.reserve(command, reserve=reserve)
        except CapacityError:
            assert self.engine.blocks.num_available == available
            return
        assert found.num_held_blocks + found.num_reserved_blocks == (len(prompt) - 1) // 64
        assert self.engine.blocks.num_available >= reserve
        self.reserved.append(Reserved(found, prompt, salt))

    @precondition(lambda self: getattr(self, "reserved", None))
    @rule(data=st.data(), count=st.integers(1, 3))
    def arrive(self, data: st.DataObject, count: int) -> None:
        """Blocks come for a reservation that may be over by now."""
        entry = data.draw(st.sampled_from(self.reserved))
        ticket = entry.reservation.ticket
        transport = self.engine.transport
        for _ in range(count):
            landing = transport.landings.get(ticket)
            if landing is None:
                return
            transport.connected.add(ticket)
            index = landing.first_block + entry.num_landed
            content = block_marks(entry.salt.encode(), entry.prompt, index)
            if ticket in transport.cut:
                content = content[::-1]
            self._write(landing.block_ids[entry.num_landed], content)
            if ticket in transport.cut:
                return
            self.engine.moves.hear(BlockLanded(ticket, index))
            entry.num_landed += 1
            if entry.num_landed == len(landing.block_ids):
                self._end_landing(ticket, None)

    @precondition(lambda self: getattr(self, "engine", None) and self.engine.transport.connected)
    @rule(data=st.data())
    def connection_ends(self, data: st.DataObject) -> None:
        """Cut in the middle of a block, of which half is written."""
        ticket = data.draw(st.sampled_from(sorted(self.engine.transport.connected)))
        entry = next(entry for entry in self.reserved if entry.reservation.ticket == ticket)
        landing = self.engine.transport.landings[ticket]
        self._write(landing.block_ids[entry.num_landed], b"?" * 512)
        self._end_landing(ticket, "cut")

    @precondition(lambda self: getattr(self, "reserved", None))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(self.reserved))
        self.engine.moves.reservations.release(entry.reservation.ticket)

    @rule(seconds=st.sampled_from([0.5, 2.0, 31.0]))
    def wait_and_reap(self, seconds: float) -> None:
        self.engine.clock.advance(seconds)
        self.engine.moves.reap()

    @precondition(lambda self: getattr(self, "reserved", None))
    @rule(
        data=st.data(),
        n=st.sampled_from([1, 1, 3]),
        max_tokens=st.sampled_from([1, 70]),
        tail=st.lists(st.integers(1, VOCAB_SIZE - 1), max_size=3),
        wrong_salt=st.sampled_from([False, False, False, True]),
    )
    def submit_with_ticket(
        self, data: st.DataObject, n: int, max_tokens: int, tail: list[int], wrong_salt: bool
    ) -> None:
        """The request that blocks arrived for; sometimes its tokens are others than announced."""
        entry = data.draw(st.sampled_from(self.reserved))
        salt = entry.salt.encode() + b"!" * wrong_salt
        try:
            claim = self.engine.moves.reservations.claim(entry.reservation.ticket, salt)
        except InvalidRequest:
            assert wrong_salt
            return
        self.count += 1
        prompt = entry.prompt + tail
        requests = make_requests(f"r{self.count}", prompt, n=n, max_tokens=max_tokens, salt=salt)
        try:
            self.engine.scheduler.submit_all(requests, unpin=claim.unpin if claim else None)
        except CapacityError:
            if claim:
                claim.unpin()
            return
        self.requests.extend(requests)

    @rule(
        prompt=prompts,
        salt=st.sampled_from(["", "", "x"]),
        first_block=st.sampled_from([None, 0, 0, 1, 5]),
        patience=st.sampled_from([None, None, 3]),
        priority=st.integers(-1, 1),
    )
    def prefill(
        self, prompt: list[int], salt: str, first_block: int | None, patience: int | None, priority: int
    ) -> None:
        self.begin_transfers()
        self.count += 1
        command = Prefill(
            request_id=RequestId(f"p{self.count}"),
            token_ids=tuple(prompt),
            cache_salt=salt,
            deadline=None if patience is None else self.engine.clock.now() + patience,
            destination=None if first_block is None else Destination("fake:2", f"ticket-{self.count}", first_block),
        )
        request = prefill_request(
            command.request_id,
            prompt,
            vocab_size=VOCAB_SIZE,
            salt=salt.encode(),
            priority=priority,
            deadline=command.deadline,
        )
        if request is not None:
            try:
                self.engine.scheduler.submit(request)
            except CapacityError:
                return
            self.prefilling.append(request)
        self.prefills[command.request_id] = command
        self.engine.moves.prefills.begin(command, request.num_shareable_blocks if request else 0)

    @precondition(lambda self: getattr(self, "engine", None) and self.engine.transport.pushes)
    @rule(data=st.data(), count=st.integers(1, 3))
    def acknowledge(self, data: st.DataObject, count: int) -> None:
        push = data.draw(st.sampled_from(self.engine.transport.pushes))
        for index, block_id, _ in push.blocks[:count]:
            self._check_content(push, index, block_id)
            del push.blocks[0]
            self.engine.moves.hear(BlockPushed(push.number))
        if push.finished and not push.blocks:
            self._end_push(push, None)

    @precondition(lambda self: getattr(self, "engine", None) and self.engine.transport.pushes)
    @rule(data=st.data())
    def push_fails(self, data: st.DataObject) -> None:
        self._end_push(data.draw(st.sampled_from(self.engine.transport.pushes)), "cut")

    @precondition(lambda self: getattr(self, "prefilling", None))
    @rule(data=st.data())
    def abort_prefill(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.prefilling[-4:]))
        self.engine.scheduler.abort(request.id)
        self.engine.moves.prefills.abort(request.id)
        self.engine.collect()

    @invariant()
    def transfers_are_right(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.begin_transfers()
        self.engine.moves.check()
        for push in self.engine.transport.pushes:
            for index, block_id, _ in push.blocks:
                self._check_content(push, index, block_id)
        self.done += self.engine.moves.prefills.take_done()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.begin_transfers()
            self.engine.moves.reservations.release_all()
            for ticket in list(self.engine.transport.landings):
                self._end_landing(ticket, "cut")
            self.engine.moves.prefills.cancel_all("the test is over")
            for push in list(self.engine.transport.pushes):
                assert push.cancelled
                self._end_push(push, "cancelled")
            super().teardown()
            while self.engine.transport.pushes:
                self._end_push(self.engine.transport.pushes[0], None)
            blocks = self.engine.blocks
            assert not blocks.is_encumbered and blocks.num_free + blocks.num_cached == blocks.num_blocks
            self.done += self.engine.moves.prefills.take_done()
            assert sorted(done.request_id for done in self.done) == sorted(self.prefills)
            assert len(self.engine.moves.reservations) == 0

    def _write(self, block_id: int, content: bytes) -> None:
        for view in self.engine.model.views(block_id):
            view[:], content = content[: len(view)], content[len(view) :]

    def _end_landing(self, ticket: str, failure: str | None) -> None:
        self.engine.transport.end(ticket)
        self.engine.moves.hear(LandingEnded(ticket, failure))

    def _end_push(self, push: FakePush, failure: str | None) -> None:
        self.engine.transport.pushes.remove(push)
        needless = self.engine.moves.hear(PushEnded(push.number, failure))
        if needless is not None:
            self.engine.scheduler.abort(needless)
            self.engine.collect()

    def _check_content(self, push: FakePush, index: int, block_id: int) -> None:
        """A lent block holds what was computed, whatever became of its request."""
        command = next(c for c in self.prefills.values() if c.destination and c.destination.ticket == push.ticket)
        content = b"".join(self.engine.model.views(block_id))
        assert content == block_marks(command.cache_salt.encode(), command.token_ids, index)


TestTransfers = TransferMachine.TestCase
TestTransfers.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
