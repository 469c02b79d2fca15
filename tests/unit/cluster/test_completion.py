"""Completions as the command line follows them: text, stop strings, ends."""

import json

import pytest

from baleen.ids import RequestId
from baleen.text.completion import CompletionText
from baleen.text.stop_strings import StopStrings
from cluster.commands.generate_output import InOrderPrinter, completion_json, summary
from cluster.completion import Completion
from cluster.generation import Timing
from workers.engine.batch import FinishReason, RequestOutput, SampledToken

EOS = 1


class Letters:
    """A tokenizer in which token 65 is "A"."""

    def token_bytes(self, token_id):
        return bytes([token_id])


def completion(*, stop=(), min_tokens=0, text=True, prompt=0, index=0):
    stops = StopStrings(stop) if stop else None
    renderer = CompletionText(Letters(), stops, min_tokens=min_tokens) if text else None
    return Completion(prompt=prompt, index=index, num_prompt_tokens=3, renderer=renderer)


def output(position, tokens, finish=None, *, cached=0, detail=""):
    sampled = tuple(SampledToken(ord(t) if isinstance(t, str) else t, None) for t in tokens)
    return RequestOutput(RequestId("a"), 0, position, sampled, finish, detail, 3, cached)


def test_text_comes_piece_by_piece_and_the_end_token_is_in_the_ids_only():
    done = completion()
    assert done.take(output(0, "He", cached=2)) == "He"
    assert done.take(output(2, ["y", EOS], FinishReason.STOP, cached=2)) == "y"
    assert (done.text, done.token_ids, done.finish) == ("Hey", [72, 101, 121, EOS], "stop")
    assert done.num_cached_tokens == 2 and not done.stopped_by_text


def test_a_last_token_that_only_length_ended_is_text():
    done = completion()
    done.take(output(0, "Hey", FinishReason.LENGTH))
    assert (done.text, done.finish) == ("Hey", "length")


def test_a_stop_string_across_tokens_cuts_the_text_and_ends_it_as_stopped():
    done = completion(stop=["END"])
    assert done.take(output(0, "abE")) == "ab"
    assert done.take(output(3, "N")) == ""
    assert done.take(output(4, "D")) == ""
    assert (done.text, done.finish, done.stopped_by_text) == ("ab", "stop", True)
    assert done.token_ids == [ord(c) for c in "abEND"]


def test_tokens_that_were_under_way_after_a_stop_string_are_ignored():
    done = completion(stop=["END"])
    done.take(output(0, "aENDxy"))
    assert done.token_ids == [ord(c) for c in "aEND"]
    assert done.take(output(6, "z")) == ""
    assert done.take(output(7, "", FinishReason.CANCELLED)) == ""
    assert (done.text, done.finish) == ("a", "stop")


def test_a_stop_string_with_the_last_token_counts_as_stop_and_needs_no_abort():
    done = completion(stop=["END"])
    done.take(output(0, "aEND", FinishReason.LENGTH))
    assert (done.text, done.finish, done.stopped_by_text) == ("a", "stop", False)


def test_a_stop_string_that_never_completes_is_text_in_the_end():
    done = completion(stop=["END"])
    assert done.take(output(0, "aEN", FinishReason.LENGTH)) == "aEN"


def test_no_stop_string_ends_a_completion_before_min_tokens():
    done = completion(stop=["b"], min_tokens=3)
    done.take(output(0, "abab"))
    assert (done.text, done.finish) == ("aba", "stop")


def test_without_a_tokenizer_ids_are_shown_and_there_is_no_text():
    done = completion(text=False)
    assert done.take(output(0, [5, 6])) == "5 6 "
    assert done.text is None


def test_the_json_of_a_completion():
    done = completion()
    rivals = ((65, -0.5), (66, -1.0))
    done.take(RequestOutput(RequestId("a"), 0, 0, (SampledToken(65, -0.5, rivals),), FinishReason.LENGTH, "", 3, 1))
    assert json.loads(json.dumps(completion_json(done))) == {
        "token_ids": [65],
        "text": "A",
        "finish_reason": "length",
        "prompt_tokens": 3,
        "cached_tokens": 1,
        "logprobs": [{"token_id": 65, "logprob": -0.5, "top": [[65, -0.5], [66, -1.0]]}],
    }


def test_logprobs_are_null_unless_asked_for():
    done = completion()
    done.take(output(0, "A", FinishReason.LENGTH))
    assert completion_json(done)["logprobs"] is None


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0, 2]])
def test_several_completions_are_printed_in_order_whatever_ends_first(capsys, order):
    several = [completion(prompt=number) for number in range(3)]
    printer = InOrderPrinter(several, as_json=True)
    for number in order:
        several[number].take(output(0, chr(65 + number), FinishReason.LENGTH))
        printer.end(several[number])
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["A", "B", "C"]


def test_what_is_complete_is_not_held_back_by_what_comes_later(capsys):
    several = [completion(prompt=number) for number in range(2)]
    printer = InOrderPrinter(several, as_json=False)
    several[0].take(output(0, "A", FinishReason.LENGTH))
    printer.end(several[0])
    assert capsys.readouterr().out == "=== prompt 0, completion 0 (length) ===\nA\n"


def test_the_summary_counts_prompts_once_and_completions_each():
    several = [completion(index=index) for index in range(2)]
    for one in several:
        one.take(output(0, "ABCD", FinishReason.LENGTH, cached=2))
    line = summary(several, Timing(first_token_s=0.5, total_s=2.0))
    assert line == (
        "1 prompts, 2 completions: 3 prompt tokens (2 cached), 8 new tokens (length), first token after 0.500 s, "
        "4.0 tokens/s"
    )
