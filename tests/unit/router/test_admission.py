"""Admission: bounded, fair, within deadlines, and refused with a reason."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.errors import CapacityError, DeadlineExceeded, NotReady, QueueFull
from router.admission import Admission, AdmissionParameters, Applicant, ShedError
from tests.support.clock import ManualClock


class House:
    """So many places, and a queue before them."""

    def __init__(self, places=1, **parameters):
        self.places = places
        self.clock = ManualClock()
        self.admission = Admission(AdmissionParameters(**parameters), self.clock)
        self.admitted = []

    def applicant(self, name, *, tenant="tenant", tokens=100, deadline_s=60.0, slo_s=None, predict=None, place=None):
        def take():
            if self.places == 0:
                return None
            self.places -= 1
            self.admitted.append(name)
            return name

        return Applicant(
            request_id=name,
            tenant=tenant,
            num_tokens=tokens,
            deadline=self.clock.now() + deadline_s,
            place=place or take,
            undo=self.undo,
            predict=predict or (lambda ahead: 0.1),
            slo_s=slo_s,
        )

    def undo(self, name):
        self.admitted.remove(name)
        self.places += 1

    async def ask(self, name, **options):
        """A task that asks, once it waits or has its answer."""
        task = asyncio.create_task(self.admission.admit(self.applicant(name, **options)))
        await asyncio.sleep(0)
        return task

    def free(self, places=1):
        self.places += places
        self.admission.look()


def run(scenario):
    return asyncio.run(scenario())


def test_with_room_nobody_waits():
    async def scenario():
        house = House(places=2)
        assert await house.admission.admit(house.applicant("a")) == "a"
        assert len(house.admission) == 0
        assert house.admission.counts.admitted == 1

    run(scenario)


def test_room_that_comes_goes_to_the_first():
    async def scenario():
        house = House(places=0)
        tasks = [await house.ask(name) for name in "abc"]
        house.free(2)
        assert [await tasks[0], await tasks[1]] == ["a", "b"]
        assert not tasks[2].done()
        assert len(house.admission) == 1
        house.free()
        assert await tasks[2] == "c"

    run(scenario)


def test_a_change_of_capacity_is_noticed_by_itself():
    async def scenario():
        house = House(places=0)
        task = await house.ask("a")
        house.places = 1
        house.admission.capacity_changed()
        house.admission.capacity_changed()
        assert await asyncio.wait_for(task, 30) == "a"

    run(scenario)


def test_a_newcomer_does_not_overtake_those_who_wait():
    async def scenario():
        house = House(places=0)
        first = await house.ask("first")
        house.places = 1
        second = await house.ask("second")
        house.admission.look()
        assert await first == "first"
        assert not second.done()
        second.cancel()

    run(scenario)


def test_tenants_take_turns_by_tokens():
    async def scenario():
        house = House(places=0, weights={"heavy": 3.0})
        tasks = [await house.ask(f"{tenant}{n}", tenant=tenant) for tenant in ("heavy", "light") for n in range(9)]
        house.free(8)
        await asyncio.sleep(0)
        assert sum(name.startswith("heavy") for name in house.admitted) == 6
        for task in tasks:
            task.cancel()

    run(scenario)


def test_a_deadline_ends_the_wait_and_says_what_it_was_for():
    async def scenario():
        house = House(places=0)
        task = await house.ask("a", deadline_s=5.0)
        later = await house.ask("b", deadline_s=9.0)
        house.clock.advance(5.0)
        house.free()
        with pytest.raises(DeadlineExceeded, match=r"waited 5.00 s .* no rank has room"):
            await task
        assert await later == "b", "what is over takes no place"
        with pytest.raises(DeadlineExceeded, match="had passed"):
            await house.admission.admit(house.applicant("c", deadline_s=0.0))
        assert house.admission.counts.expired == 2

    run(scenario)


def test_a_deadline_needs_nobody_to_look():
    async def scenario():
        house = House(places=0)
        task = await house.ask("a", deadline_s=0.0005, predict=lambda ahead: 0.0)
        house.clock.advance(1.0)
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(task, 30)

    run(scenario)


def test_what_would_come_too_late_is_shed_at_once():
    async def scenario():
        house = House(places=1, slo_s=2.0)

        def predict(ahead):
            return 2.5 + ahead / 1000

        with pytest.raises(ShedError, match=r"2.50 s, must take at most 2.00 s") as shed:
            await house.admission.admit(house.applicant("a", predict=predict))
        assert (shed.value.predicted_s, shed.value.limit_s) == (2.5, 2.0)
        assert shed.value.retry_after_s == pytest.approx(0.5)
        assert isinstance(shed.value, QueueFull)
        assert await house.admission.admit(house.applicant("b", predict=predict, slo_s=3.0)) == "b", "its own limit"
        with pytest.raises(ShedError) as shed:
            await house.admission.admit(house.applicant("c", predict=predict, slo_s=0.0, deadline_s=1.0))
        assert shed.value.limit_s == pytest.approx(1.0)
        assert shed.value.retry_after_s == pytest.approx(1.5)
        assert house.admission.counts.shed == 2
        assert house.admitted == ["b"]

    run(scenario)


def test_the_prediction_counts_what_waits_ahead():
    async def scenario():
        house = House(places=0, slo_s=1.0)

        def predict(ahead):
            return 0.1 + ahead / 1000

        tasks = [await house.ask(name, tokens=500, predict=predict) for name in "ab"]
        with pytest.raises(ShedError, match=r"1.10 s"):
            await house.admission.admit(house.applicant("c", predict=predict))
        other = await house.ask("d", tenant="other", tokens=100, predict=predict)
        assert not other.done(), "another tenant has less before it"
        for task in [*tasks, other]:
            task.cancel()

    run(scenario)


def test_a_full_queue_refuses_unless_another_tenant_has_more_than_its_share():
    async def scenario():
        house = House(places=0, most_waiting=3)
        greedy = [await house.ask(f"greedy{n}", tenant="greedy") for n in range(3)]
        with pytest.raises(ShedError, match="3 requests wait, at most 3 may") as shed:
            await house.admission.admit(house.applicant("more", tenant="greedy"))
        assert shed.value.limit_s is None
        modest = await house.ask("modest", tenant="modest")
        with pytest.raises(ShedError):
            await greedy[2]
        assert len(house.admission) == 3
        with pytest.raises(ShedError):
            await house.admission.admit(house.applicant("again", tenant="modest"))
        house.free(3)
        assert [await task for task in (*greedy[:2], modest)] == ["greedy0", "greedy1", "modest"]

    run(scenario)


def test_without_ranks_a_request_waits_and_other_errors_end_it():
    async def scenario():
        house = House()

        def none_ready(*_):
            raise NotReady("no rank is there")

        def too_long(*_):
            raise CapacityError("too long")

        waiting = await house.ask("waits", place=none_ready, predict=none_ready, deadline_s=5.0)
        with pytest.raises(CapacityError, match="too long"):
            await house.admission.admit(house.applicant("a", predict=too_long))
        doomed = await house.ask("b", place=too_long)
        house.admission.look()
        with pytest.raises(CapacityError, match="too long"):
            await doomed
        house.clock.advance(5.0)
        house.admission.look()
        with pytest.raises(DeadlineExceeded, match="no rank is there"):
            await waiting

    run(scenario)


def missing(*_):
    raise NotReady("no rank is there")


def test_without_any_rank_a_request_waits_so_long_and_no_longer():
    async def scenario():
        house = House(rank_wait_s=3.0)
        first = await house.ask("first", place=missing, predict=missing, deadline_s=3600.0)
        house.clock.advance(2.0)
        second = await house.ask("second", place=missing, predict=missing, deadline_s=3600.0)
        house.clock.advance(1.0)
        house.admission.look()
        with pytest.raises(NotReady, match=r"no rank is there; the request waited 3.00 s of at most 3 s") as failed:
            await first
        assert failed.value.retry_after_s == 1.0 and not second.done()
        house.clock.advance(2.0)
        house.admission.look()
        with pytest.raises(NotReady):
            await second
        assert house.admission.counts.forsaken == 2

    run(scenario)


def test_a_rank_without_room_may_be_waited_for_until_the_deadline():
    async def scenario():
        house = House(places=0, rank_wait_s=3.0)
        gone = iter([False, False, True, False, True, True])
        applicant = house.applicant("a", deadline_s=100.0)

        def place():
            return missing() if next(gone) else applicant.place()

        task = await house.ask("a", place=place, deadline_s=100.0)
        for _ in range(4):
            house.clock.advance(2.9)
            house.admission.look()
            await asyncio.sleep(0)
            assert not task.done()
        house.clock.advance(3.0)
        house.admission.look()
        with pytest.raises(NotReady):
            await task

    run(scenario)


def test_the_wait_for_a_rank_needs_nobody_to_look():
    async def scenario():
        house = House(rank_wait_s=0.0005)
        task = await house.ask("a", place=missing, predict=missing)
        house.clock.advance(1.0)
        with pytest.raises(NotReady):
            await asyncio.wait_for(task, 30)

    run(scenario)


def test_a_caller_that_gives_up_leaves_no_trace():
    async def scenario():
        house = House(places=0)
        tasks = [await house.ask(name) for name in "abc"]
        tasks[0].cancel()
        house.free()  # before the cancelled caller has run
        assert house.admitted == ["b"]
        assert len(house.admission) == 1
        tasks[2].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(house.admission) == 0
        assert await tasks[1] == "b"

    run(scenario)


def test_a_caller_that_gives_up_as_it_is_admitted_gives_its_place_to_the_next():
    async def scenario():
        house = House(places=0)
        first, second = [await house.ask(name) for name in "ab"]
        house.free()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await asyncio.wait_for(second, 30) == "b"
        assert house.admitted == ["b"]
        assert house.admission.counts.admitted == 1

    run(scenario)


def test_a_router_that_leaves_answers_those_who_wait():
    async def scenario():
        house = House(places=0)
        tasks = [await house.ask(name) for name in "ab"]
        house.admission.close()
        for task in tasks:
            with pytest.raises(NotReady, match="leaving"):
                await task

    run(scenario)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "free", "wait", "cancel"]), st.integers(0, 5), st.floats(0.1, 4.0)),
        max_size=40,
    )
)
def test_everyone_is_answered_once_and_nobody_after_the_deadline(steps):
    async def scenario():
        house = House(places=1, most_waiting=4)
        tasks, deadlines, freed = {}, {}, 0
        for number, (action, choice, seconds) in enumerate(steps):
            name = str(number)
            match action:
                case "ask":
                    deadlines[name] = house.clock.now() + seconds
                    tasks[name] = await house.ask(name, tenant=str(choice % 3), tokens=choice, deadline_s=seconds)
                case "free":
                    before = set(house.admitted)
                    house.free()
                    freed += 1
                    for admitted in set(house.admitted) - before:
                        assert deadlines[admitted] > house.clock.now()
                case "wait":
                    house.clock.advance(seconds)
                    house.admission.look()
                case "cancel" if tasks:
                    list(tasks.values())[choice % len(tasks)].cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting = [name for name, task in tasks.items() if not task.done()]
            assert len(house.admission) == len(waiting) <= 4
            assert all(deadlines[name] > house.clock.now() for name in waiting) or action != "wait"
        house.clock.advance(10.0)
        house.admission.look()
        results = await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert all(isinstance(r, str | DeadlineExceeded | ShedError | asyncio.CancelledError) for r in results)
        assert len(house.admitted) == len(set(house.admitted))
        assert house.places == 1 + freed - len(house.admitted)
        house.admission.close()

    asyncio.run(scenario())
