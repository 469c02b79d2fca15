"""Sessions: everyone hears of their own requests, each once, however slowly they read."""

import asyncio

import pytest

from baleen.errors import AlreadyRunning
from baleen.ids import RequestId
from baleen.reports import FinishReason, Load, PromptLogprobs, PromptReport, RequestOutput, SampledToken
from baleen.v1 import worker_pb2
from baleen.wire.reports import prompt_logprobs_from_proto
from tests.support.rank_grpc_client import async_test
from workers import sessions
from workers.engine.messages import Abort, Ended, PrefillDone, Refused, ReleaseReservation, StepReport
from workers.sessions import SessionTable

OPENED = worker_pb2.SessionResponse(opened=worker_pb2.Opened())


def load(num_running=0):
    return Load(
        free_blocks=1,
        num_waiting=0,
        num_running=num_running,
        queued_tokens=0,
        running_tokens=0,
        prefill_tokens_per_s=0.0,
        decode_tokens_per_s=0.0,
    )


def output(name, position=0, *, index=0, finish=None):
    return RequestOutput(RequestId(name), index, position, (SampledToken(7),), finish, "", 3, 0)


def report(step, *outputs, num_running=0):
    return StepReport(step, outputs, load(num_running))


def table():
    aborted = []
    return SessionTable(aborted.append), aborted


async def waiting(session):
    """All that a session has to say now."""
    session.finish()
    messages = []
    while (message := await session.next()) is not None:
        messages.append(message)
    return messages


@async_test
async def test_a_slow_reader_gets_many_steps_in_one_message_and_loses_nothing():
    sessions_, _ = table()
    session = sessions_.open("", OPENED)
    sessions_.claim(session, RequestId("a"), 1)
    for step in range(100):
        sessions_.report(report(step, output("a", step), num_running=step))
    opened, merged = await waiting(session)
    assert opened.HasField("opened")
    assert [o.position for o in merged.step_report.outputs] == list(range(100))
    assert (merged.step_report.step, merged.step_report.load.num_running) == (99, 99)


@async_test
async def test_a_merged_message_stays_below_its_limit(monkeypatch):
    monkeypatch.setattr(sessions, "_MERGE_OUTPUTS", 10)
    sessions_, _ = table()
    session = sessions_.open("", OPENED)
    sessions_.claim(session, RequestId("a"), 1)
    for step in range(35):
        sessions_.report(report(step, output("a", step)))
    _, *reports = await waiting(session)
    assert [len(message.step_report.outputs) for message in reports] == [10, 10, 10, 5]
    assert [o.position for message in reports for o in message.step_report.outputs] == list(range(35))


@async_test
async def test_news_of_prompts_go_to_whoever_asked_and_are_not_merged():
    sessions_, _ = table()
    mine, other = sessions_.open("", OPENED), sessions_.open("", OPENED)
    sessions_.claim(mine, RequestId("a"), 1)
    for step in range(3):
        prompts = (PromptReport(RequestId("a"), PromptLogprobs(1 + 2 * step, (-0.5, -1.5), (7, 8), (-0.25, -1.0))),)
        sessions_.report(
            StepReport(step, (output("a", finish=FinishReason.STOP),) if step == 2 else (), load(), prompts)
        )
    _, *reports = await waiting(mine)
    found = [prompt for message in reports for prompt in message.step_report.prompts]
    assert [len(message.step_report.prompts) for message in reports] == [1, 1, 1]
    assert [prompt_logprobs_from_proto(prompt.logprobs).end for prompt in found] == [3, 5, 7]
    assert len(reports[-1].step_report.outputs) == 1
    assert not any(message.step_report.prompts for message in await waiting(other))


@async_test
async def test_steps_are_not_merged_across_other_news():
    sessions_, _ = table()
    session = sessions_.open("", OPENED)
    sessions_.claim(session, RequestId("a"), 1)
    sessions_.claim(session, RequestId("b"), 1)
    sessions_.report(report(1, output("a")))
    sessions_.refused(Refused(RequestId("b"), "DrainingError", None, "leaving"))
    sessions_.report(report(2, output("a", 1)))
    kinds = [message.WhichOneof("message") for message in await waiting(session)]
    assert kinds == ["opened", "step_report", "refused", "step_report"]


@async_test
async def test_an_id_is_free_again_after_its_last_completion():
    sessions_, _ = table()
    session = sessions_.open("", OPENED)
    sessions_.claim(session, RequestId("a"), 2)
    sessions_.report(report(1, output("a", finish=FinishReason.STOP)))
    with pytest.raises(AlreadyRunning, match="'a'"):
        sessions_.claim(session, RequestId("a"), 1)
    assert sessions_.num_requests == 1
    sessions_.report(report(2, output("a", index=1, finish=FinishReason.STOP)))
    sessions_.claim(session, RequestId("a"), 1)
    sessions_.prefill_done(PrefillDone(RequestId("a"), 1, 0, 0))
    sessions_.claim(session, RequestId("a"), 1)
    sessions_.refused(Refused(RequestId("a"), "QueueFull", None, "full"))
    assert sessions_.num_requests == 0


@async_test
async def test_a_closed_session_aborts_its_requests_and_keeps_their_ids_until_they_end():
    sessions_, aborted = table()
    leaving, staying = sessions_.open("", OPENED), sessions_.open("", OPENED)
    sessions_.claim(leaving, RequestId("a"), 1)
    sessions_.claim(staying, RequestId("b"), 1)
    sessions_.close(leaving)
    sessions_.close(leaving)
    assert aborted == [Abort(RequestId("a"))]
    with pytest.raises(AlreadyRunning):
        sessions_.claim(staying, RequestId("a"), 1)
    sessions_.report(report(1, output("a", finish=FinishReason.CANCELLED), output("b")))
    sessions_.claim(staying, RequestId("a"), 1)
    (_, message) = await waiting(staying)
    assert [o.request_id for o in message.step_report.outputs] == ["b"]


@async_test
async def test_a_new_session_learns_the_load_at_once():
    sessions_, _ = table()
    sessions_.report(report(7, num_running=3))
    _, message = await waiting(sessions_.open("", OPENED))
    assert (message.step_report.step, message.step_report.load.num_running) == (7, 3)


@async_test
async def test_the_end_is_the_last_message_and_comes_once():
    sessions_, _ = table()
    session = sessions_.open("", OPENED)
    sessions_.end(Ended("first"))
    sessions_.end(Ended("second"))
    sessions_.close(session)
    messages = await waiting(session)
    assert [message.WhichOneof("message") for message in messages] == ["opened", "ended"]
    assert messages[-1].ended.cause == "first"


@async_test
async def test_a_reader_sleeps_until_something_comes():
    sessions_, _ = table()
    session = sessions_.open("", OPENED)
    await session.next()
    reading = asyncio.create_task(session.next())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not reading.done()
    sessions_.report(report(1))
    assert (await reading).step_report.step == 1


def test_reservations_end_with_the_session_that_they_were_made_under():
    sessions_, told = table()
    mine, other = sessions_.open("", OPENED, "mine"), sessions_.open("", OPENED, "other")
    for ticket in ("used", "given back", "left"):
        sessions_.reserved("mine", ticket)
    sessions_.reserved("other", "not mine")
    sessions_.ticket_used("used")
    sessions_.release_ticket("given back")
    assert told == [ReleaseReservation("given back")]
    sessions_.close(mine)
    assert told[1:] == [ReleaseReservation("left")]
    # answered after the session was over
    sessions_.reserved("mine", "late")
    assert told[2:] == [ReleaseReservation("late")]
    sessions_.close(other)
    assert told[3:] == [ReleaseReservation("not mine")]


def test_of_very_many_reservations_the_oldest_are_left_to_their_deadline(monkeypatch):
    monkeypatch.setattr(sessions, "_MOST_TICKETS", 3)
    sessions_, told = table()
    session = sessions_.open("", OPENED, "mine")
    for number in range(5):
        sessions_.reserved("mine", f"t{number}")
    sessions_.close(session)
    assert told == [ReleaseReservation(f"t{number}") for number in (2, 3, 4)]
