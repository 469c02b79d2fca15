"""Log-probabilities of prompts through the scheduler: each place once, and none from a prefix found computed."""

import pytest

from baleen.config import EngineConfig
from baleen.ids import RequestId
from baleen.reports import PromptLogprobs
from tests.support.engine import VOCAB_SIZE, FakeEngine, make_request, make_requests, prompt_of, prompt_scores
from workers.engine.batch import FinishReason, SamplingFailure, StepResult
from workers.engine.prompt_scores import PromptScores
from workers.engine.submission import prefill_request

PROMPT = prompt_of(200)
EXPECTED = prompt_scores(PROMPT)


def engine(chunk=1000, **options):
    config = EngineConfig(audit="step", max_batch_tokens=300, max_chunk_tokens=chunk, max_running=8)
    return FakeEngine(config=config, **options)


def test_what_each_token_gives():
    scores = PromptScores(PROMPT, 0)
    assert scores.places(0, 64) == range(1, 65)
    scores.reported(range(1, 65))
    assert scores.num_readable_blocks == 1
    # computed again, from a block that was given up
    assert scores.places(0, 40) == range(0)
    assert scores.places(0, 100) == range(65, 101)
    assert scores.places(64, 136) == range(65, 200)
    scores.reported(range(65, 200))
    assert scores.num_readable_blocks is None
    assert scores.places(0, 200) == range(0)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_every_place_is_reported_once(chunk):
    one = engine(chunk)
    one.submit(make_request("a", PROMPT, prompt_logprobs=0), make_request("b", PROMPT[:1], prompt_logprobs=0))
    one.run()
    assert one.scores == {"a": EXPECTED}


def test_a_cached_prefix_is_not_read_but_kept():
    one = engine()
    for name, options in (("a", {}), ("b", {"prompt_logprobs": 0}), ("c", {})):
        request = make_request(name, PROMPT, **options)
        one.submit(request)
        one.run()
        assert request.num_cached == (192 if name == "c" else 0)
    assert one.scores == {"b": EXPECTED}
    one.blocks.clear()
    one.submit(make_request("d", PROMPT, prompt_logprobs=0))
    one.run()
    after = make_request("e", PROMPT)
    one.submit(after)
    one.run()
    assert after.num_cached == 192


def test_whoever_has_the_first_places_gets_the_others_and_reads_what_it_may():
    one = engine()
    one.submit(make_request("a", PROMPT))
    one.run()
    request = make_request("b", PROMPT, prompt_logprobs=0, prompt_logprobs_from=129)
    one.submit(request)
    batch = one.scheduler.schedule()
    assert request.num_cached == 128
    one.scheduler.commit(batch, one.model.run(batch))
    (report,) = one.scheduler.take_prompts()
    assert report.logprobs == PromptLogprobs(129, EXPECTED[128:])
    one.run()
    # nothing is left to report
    again = make_request("c", PROMPT, prompt_logprobs=0, prompt_logprobs_from=200)
    one.submit(again)
    one.run()
    assert again.num_cached == 192 and "c" not in one.scores


def test_a_prefill_reports_the_token_after_what_it_computes():
    one = engine(chunk=100)
    request = prefill_request(RequestId("p"), PROMPT, vocab_size=VOCAB_SIZE, prompt_logprobs=0)
    one.scheduler.on_prefilled = lambda request: None
    one.submit(request)
    one.run()
    assert one.scores == {"p": EXPECTED[:192]}
    rest = make_request("d", PROMPT, prompt_logprobs=0, prompt_logprobs_from=193)
    one.submit(rest)
    batch = one.scheduler.schedule()
    assert rest.num_cached == 192 and [item.scored for item in batch.items] == [range(193, 200)]


def test_nothing_is_reported_again_after_a_preemption():
    config = EngineConfig(audit="step", max_batch_tokens=70, max_chunk_tokens=1, max_running=8)
    one = FakeEngine(num_blocks=6, config=config)
    requests = [make_request("first", prompt_of(60), max_tokens=150), make_request("a", PROMPT, prompt_logprobs=0)]
    one.submit(*requests)
    one.run()
    assert one.scheduler.tallies.preemptions
    assert one.scores == {"a": EXPECTED}


def test_completions_of_one_prompt_report_it_once_and_the_next_goes_on_for_one_that_is_aborted():
    one = engine(chunk=100)
    requests = make_requests("a", PROMPT, n=3, prompt_logprobs=0)
    one.scheduler.submit_all(requests)
    one.step()
    one.scheduler.abort(RequestId("a"), 0)
    one.run()
    assert one.scores == {"a": EXPECTED}
    assert [one.finish_of(request) for request in requests] == [FinishReason.CANCELLED, *[FinishReason.LENGTH] * 2]


def test_scores_alone():
    one = engine(chunk=100)
    requests = make_requests("a", PROMPT, max_tokens=0, n=2, prompt_logprobs=0)
    one.scheduler.submit_all([*requests, make_request("b", [3], max_tokens=0, prompt_logprobs=0)])
    one.run()
    assert one.scores == {"a": EXPECTED}
    for request in requests:
        assert (one.tokens_of(request), one.finish_of(request)) == ([], FinishReason.LENGTH)


def test_the_whole_pool_is_enough_for_scores_of_a_prompt_that_fills_it():
    one = engine(num_blocks=3)
    with pytest.raises(Exception, match="need 4 cache blocks, the whole pool has 3"):
        one.submit(make_request("a", prompt_of(193), max_tokens=0, prompt_logprobs=0))
    one.submit(make_request("b", prompt_of(192), max_tokens=0, prompt_logprobs=0))
    one.run()
    assert len(one.scores["b"]) == 191


def test_a_prompt_without_log_probabilities_fails_alone():
    one = engine()
    requests = [make_request(name, PROMPT, prompt_logprobs=0) for name in "ab"]
    one.submit(*requests)
    batch = one.scheduler.schedule()
    result = one.model.run(batch)
    scored = {**result.scored, requests[0]: SamplingFailure("no number")}
    one.scheduler.commit(batch, StepResult(result.sampled, scored))
    one.run()
    assert one.last_output(requests[0]).detail == "no number"
    assert [one.finish_of(request) for request in requests] == [FinishReason.FAILED, FinishReason.LENGTH]
    assert one.scores == {"b": EXPECTED}
