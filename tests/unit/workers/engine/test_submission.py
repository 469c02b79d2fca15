"""From one submission to its n requests: validation, seeds and salts."""

from typing import Any

import pytest

from baleen.constraint import Constraint
from baleen.errors import InvalidRequest
from baleen.ids import RequestId
from baleen.sampling import MAX_SEED, SamplingParams
from baleen.seeds import completion_seed
from workers.engine.request import Request
from workers.engine.submission import expand_submission, prefill_request


def expand(prompt: Any = (1, 2), *, sampling: SamplingParams | None = None, **options: Any) -> list[Request]:
    return expand_submission(
        RequestId("r"), prompt, sampling or SamplingParams(), vocab_size=10, eos_token_ids=(0,), **options
    )


def test_one_request_per_completion_with_tokens_of_its_own() -> None:
    requests = expand(sampling=SamplingParams(n=3, seed=5), salt=b"s", priority=2, deadline=8.0)
    assert [request.index for request in requests] == [0, 1, 2]
    assert all(request.token_ids == [1, 2] and request.salt == b"s" for request in requests)
    assert all((request.priority, request.deadline) == (2, 8.0) for request in requests)
    requests[0].token_ids.append(3)
    assert requests[1].token_ids == [1, 2]


def test_seeds_are_given_or_drawn_and_differ_by_completion() -> None:
    given = [request.seed for request in expand(sampling=SamplingParams(n=128, seed=5))]
    assert given[0] == 5 == expand(sampling=SamplingParams(seed=5))[0].seed
    assert len(set(given)) == 128 and all(0 <= seed <= MAX_SEED for seed in given)
    assert given == [request.seed for request in expand(sampling=SamplingParams(n=128, seed=5))]
    assert expand()[0].seed != expand()[0].seed


def test_derived_seeds_are_written_down() -> None:
    # clients keep seeds to repeat a result: a change must be deliberate
    assert [completion_seed(5, index) for index in range(3)] == [5, 2760588409281466520, 3221851605941760013]
    assert 0 <= completion_seed(MAX_SEED, 1) <= MAX_SEED


def test_end_tokens_stop_unless_ignored() -> None:
    stop = frozenset({4})
    assert expand(sampling=SamplingParams(stop_token_ids=stop))[0].stop_ids == {0, 4}
    assert expand(sampling=SamplingParams(stop_token_ids=stop, ignore_eos=True))[0].stop_ids == {4}


def test_without_a_prefix_cache_only_siblings_share_a_salt() -> None:
    first = expand(sampling=SamplingParams(n=2), salt=b"s", prefix_cache=False)
    second = expand(salt=b"s", prefix_cache=False)
    assert first[0].salt == first[1].salt
    assert len({first[0].salt, second[0].salt, b"s"}) == 3


def test_every_completion_has_its_own_token_mask() -> None:
    masks: Any = [object(), object()]
    requests = expand(sampling=SamplingParams(n=2), token_masks=masks)
    assert [request.token_mask for request in requests] == masks


def test_with_a_constraint_the_models_end_always_stops() -> None:
    constraint = Constraint(kind="regex", text="a")
    sampling = SamplingParams(stop_token_ids=frozenset({4}), ignore_eos=True, constraint=constraint)
    masks: Any = [object()]
    assert expand(sampling=sampling, token_masks=masks)[0].stop_ids == {0, 4}


def test_a_constraint_without_a_mask_is_refused() -> None:
    sampling = SamplingParams(constraint=Constraint(kind="regex", text="a"))
    with pytest.raises(InvalidRequest, match="the model of this rank has none") as caught:
        expand(sampling=sampling)
    assert caught.value.field == "constraint"


@pytest.mark.parametrize(
    ("prompt", "sampling", "field", "message"),
    [
        ([], None, "prompt", "0 tokens"),
        ([1, 10], None, "prompt", "holds token 10, the vocabulary has ids 0 to 9"),
        ([-1, 1], None, "prompt", "holds token -1"),
        ([1, 2.0], None, "prompt", "no token id"),
        (["a"], None, "prompt", "no token id"),
        ([2**70], None, "prompt", "no token id"),
        ([1], SamplingParams(stop_token_ids=frozenset({11})), "stop_token_ids", "holds token 11"),
        ([1], SamplingParams(logit_bias={12: 1.0}), "logit_bias", "holds token 12"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt: Any, sampling: Any, field: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        expand(prompt, sampling=sampling)
    assert caught.value.field == field


def test_delivered_tokens_are_output_and_their_completion_goes_on() -> None:
    sampling = SamplingParams(max_tokens=5, seed=5)
    (request,) = expand([1, 2, 3, 4], sampling=sampling, num_delivered=3)
    assert (request.num_prompt, request.num_output, request.output_ids, request.max_tokens) == (1, 3, [2, 3, 4], 6)
    assert request.index == 0 and request.seed == 5


@pytest.mark.parametrize(
    ("prompt", "num_delivered", "sampling"),
    [
        ([1, 2], 2, SamplingParams()),
        ([1, 2], -1, SamplingParams()),
        ([1, 2, 3], 2, SamplingParams(max_tokens=2)),
        ([1, 2, 0], 2, SamplingParams()),
        ([1, 2, 7], 2, SamplingParams(stop_token_ids=frozenset({7}))),
        ([1, 2, 3], 1, SamplingParams(n=2)),
    ],
)
def test_nothing_is_continued_that_has_ended_or_has_no_prompt(
    prompt: list[int], num_delivered: int, sampling: SamplingParams
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        expand(prompt, sampling=sampling, num_delivered=num_delivered)
    assert refused.value.field == "num_delivered"


def test_a_stop_token_that_came_before_min_tokens_does_not_end_a_completion() -> None:
    (request,) = expand([1, 2, 0], sampling=SamplingParams(min_tokens=2), num_delivered=2)
    assert request.num_output == 2


def test_a_prefill_has_the_whole_blocks_that_others_could_share() -> None:
    def prefill(count: int, **options: Any) -> Request | None:
        return prefill_request(RequestId("p"), [1] * count, vocab_size=10, **options)

    assert prefill(1) is None and prefill(64) is None
    request = prefill(129)
    assert request is not None and request.prefill_only
    assert (request.num_tokens, request.num_shareable_blocks, request.max_tokens) == (128, 2, 128)
    secret = [prefill(65, salt=b"s", prefix_cache=False) for _ in range(2)]
    assert len({request.salt for request in secret if request}) == 2
    with pytest.raises(InvalidRequest, match="vocabulary"):
        prefill_request(RequestId("p"), [10], vocab_size=10)
