"""From one submission to its n requests: validation, seeds and salts."""

from typing import Any

import pytest

from baleen.errors import InvalidRequest
from baleen.ids import RequestId
from baleen.sampling import MAX_SEED, SamplingParams
from baleen.seeds import completion_seed
from workers.engine.request import Request
from workers.engine.submission import expand_submission


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
    class Mask:
        def fill(self, bitmask: object) -> None: ...

        def accept(self, token_id: int) -> None: ...

    requests = expand(sampling=SamplingParams(n=2), new_token_mask=Mask)
    assert requests[0].token_mask is not requests[1].token_mask


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
