"""Requests that wait for their grammars: order, refusals, and an answer for each."""

import threading
from dataclasses import replace

from baleen.budget import Budget
from baleen.constraint import Constraint
from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from baleen.telemetry import Log
from baleen.text.grammars import Grammars
from baleen.text.tokenizer import Tokenizer
from tests.support.grammar_walk import allowed
from tests.support.tiny_tokenizer import tiny_tokenizer
from workers.anteroom import MOST_WAITING, Anteroom
from workers.engine.inbox import Inbox
from workers.engine.messages import Abort, Drain, Refused, Submit

TINY = Tokenizer(tiny_tokenizer())
VOCAB = 512
(EOS,) = TINY.encode("<｜end▁of▁sentence｜>")
WAIT_S = 30.0
GOOD = Constraint(kind="regex", text="abc")


class Room:
    """An anteroom, its inbox, and what was refused."""

    def __init__(self, *, has_tokenizer=True, opened=True):
        self.inbox = Inbox()
        self.events = []
        self.news = threading.Semaphore(0)
        self.inbox.connect(self.news.release)
        self.grammars = Grammars(TINY, vocab_size=VOCAB, eos_token_ids=(EOS,)) if has_tokenizer else None
        self.room = Anteroom(self.inbox, emit=self._emit, log=Log("off"))
        if opened:
            self.room.open(self.grammars)

    def _emit(self, event):
        self.events.append(event)
        self.news.release()

    def take(self, number):
        """Commands, once so many and refusals have come."""
        commands = []
        while len(commands) + len(self.events) < number:
            assert self.news.acquire(timeout=WAIT_S)
            commands += self.inbox.take()
        return commands


def submit(name, constraint=GOOD, token_ids=(5, 6), num_delivered=0, **sampling):
    params = SamplingParams(constraint=constraint, **sampling)
    return Submit(request_id=RequestId(name), token_ids=tuple(token_ids), sampling=params, num_delivered=num_delivered)


def test_each_completion_gets_a_mask():
    room = Room()
    assert room.room.put(submit("r", n=3))
    (command,) = room.take(1)
    assert replace(command, token_masks=()) == submit("r", n=3)
    assert len({id(mask.matcher) for mask in command.token_masks}) == 3


def test_delivered_tokens_are_taken_here():
    room = Room()
    room.room.put(submit("r", token_ids=(5, *TINY.encode("ab")), num_delivered=2))
    (command,) = room.take(1)
    assert allowed(command.token_masks[0], VOCAB) == TINY.encode("c")


def test_a_budget_has_a_mask_too_around_that_of_a_constraint():
    room, budget = Room(), Budget(tokens=2, end="c")
    room.room.put(submit("alone", None, token_ids=(5, *TINY.encode("xy")), num_delivered=2, budget=budget))
    room.room.put(submit("both", token_ids=(5, *TINY.encode("a")), num_delivered=1, budget=budget))
    alone, both = room.take(2)
    assert allowed(alone.token_masks[0], VOCAB) == TINY.encode("c")
    assert allowed(both.token_masks[0], VOCAB) == TINY.encode("b")


def test_what_needs_no_grammar_passes_by_and_an_abort_waits_behind_its_request():
    room = Room(opened=False)
    plain = submit("plain", constraint=None)
    room.room.put(submit("slow"))
    room.room.put(Abort(RequestId("slow")))
    room.room.put(plain)
    room.room.put(Abort(RequestId("other")))
    room.room.put(Drain("test"))
    assert room.take(3) == [plain, Abort(RequestId("other")), Drain("test")]
    room.room.open(room.grammars)
    first, second = room.take(2)
    assert isinstance(first, Submit) and first.request_id == "slow" and second == Abort(RequestId("slow"))
    room.room.put(Abort(RequestId("slow")))
    assert room.inbox.take() == [Abort(RequestId("slow"))]


def test_what_cannot_be_kept_is_refused_and_the_next_is_served():
    room = Room()
    room.room.put(submit("bad", Constraint(kind="regex", text="(")))
    room.room.put(submit("good"))
    (command,) = room.take(2)
    assert command.request_id == "good"
    (refused,) = room.events
    assert isinstance(refused, Refused) and (refused.request_id, refused.error) == ("bad", "InvalidRequest")
    assert refused.field == "constraint.text" and "unclosed group" in refused.message


def test_without_a_tokenizer_the_step_loop_hears_of_it_without_masks():
    room = Room(has_tokenizer=False)
    room.room.put(submit("r"))
    assert room.take(1) == [submit("r")]


def test_a_fault_is_answered_and_the_thread_lives():
    room = Room()
    room.grammars.matcher, kept = None, room.grammars.matcher
    room.room.put(submit("r"))
    assert room.take(1) == [] and room.events[0].error == "BaleenError"
    room.grammars.matcher = kept
    room.room.put(submit("s"))
    assert [command.request_id for command in room.take(2)] == ["s"]


def test_a_request_that_comes_after_the_end_is_refused():
    room = Room()
    room.inbox.close()
    room.room.put(submit("r"))
    assert room.take(1) == [] and room.events[0].error == "DrainingError"


def test_only_so_many_wait():
    room = Room(opened=False)
    for number in range(MOST_WAITING):
        room.room.put(submit(f"r{number}"))
    room.room.put(submit("one more"))
    assert [(event.request_id, event.error) for event in room.events] == [("one more", "QueueFull")]
    room.room.open(room.grammars)
    assert len(room.take(MOST_WAITING + 1)) == MOST_WAITING


def test_a_chain_of_rules_as_long_as_there_is_room_for_ends_nothing():
    """The library follows it by recursion: with a usual stack the process would be gone."""
    chain = "start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(8000)) + 'r8000: "a"\n'
    room = Room()
    room.room.put(submit("long", Constraint(kind="grammar", text=chain)))
    (command,) = room.take(1)
    assert allowed(command.token_masks[0], VOCAB) == TINY.encode("a")
