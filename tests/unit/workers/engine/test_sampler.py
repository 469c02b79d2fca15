"""The sampler: rows independent of their batch, every parameter, and errors that name the request."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from tests.support import sampling_oracle as oracle
from workers.engine import sampler as sampler_module
from workers.engine.request import Request
from workers.engine.sampler import DeadEnd, Sampler, SamplingError
from workers.engine.submission import expand_submission

VOCAB = 40
EOS = 1


class Allow:
    """A token mask that allows a fixed set."""

    def __init__(self, *tokens):
        self.tokens = tokens

    def fill(self, bitmask):
        assert bitmask.dtype == np.int32 and bitmask.shape == (math.ceil(VOCAB / 32),) and not bitmask.any()
        for token in self.tokens:
            bitmask.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)

    def accept(self, token_id):
        raise AssertionError("the scheduler's business")

    problem = ""
    binds = True


def request(name="r", *, prompt=(3, 4, 3), output=(), seed=0, index=0, mask=None, stop_ids=(EOS,), **sampling):
    made = Request(
        id=RequestId(name),
        index=index,
        token_ids=list(prompt),
        sampling=SamplingParams(max_tokens=1000, **sampling),
        seed=seed,
        stop_ids=frozenset(stop_ids),
        token_mask=mask,
    )
    made.token_ids.extend(output)
    return made


def random_logits(num_rows, seed=0, vocab=VOCAB):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, (num_rows, vocab)).astype(np.float32))


def tokens_of(logits, requests):
    return [token.token_id for token in Sampler(logits.shape[1]).sample(logits, requests)]


def one(logits, made):
    return tokens_of(torch.as_tensor(logits, dtype=torch.float32)[None], [made])[0]


def line(**values):
    """Logits that are 0 but for the tokens named, as in t7=3."""
    logits = torch.zeros(VOCAB)
    for name, value in values.items():
        logits[int(name[1:])] = value
    return logits


# What a request may ask for, in any combination.
REQUESTS = st.builds(
    request,
    seed=st.integers(0, 2**63 - 1),
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6),
    output=st.lists(st.integers(0, VOCAB - 1), max_size=6),
    mask=st.sampled_from([None, None, Allow(2, 5, 33, 39)]),
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.0, 4.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 39, 40, 1000]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -1.0]),
    logit_bias=st.sampled_from([{}, {}, {5: 3.5, 7: -100.0}]),
    min_tokens=st.sampled_from([0, 0, 4]),
    stop_ids=st.sampled_from([(), (EOS,), (EOS, 9)]),
    logprobs=st.sampled_from([None, None, 0, 3, 20]),
)


@settings(max_examples=150, deadline=None)
@given(requests=st.lists(REQUESTS, min_size=1, max_size=9), seed=st.integers(0, 99), data=st.data())
def test_a_row_gets_in_any_batch_what_it_gets_alone(requests, seed, data):
    logits = random_logits(len(requests), seed)
    before = logits.clone()
    together = Sampler(VOCAB).sample(logits, requests)
    assert torch.equal(logits, before)
    alone = [Sampler(VOCAB).sample(logits[i : i + 1], [made])[0] for i, made in enumerate(requests)]
    assert together == alone
    order = data.draw(st.permutations(range(len(requests))))
    shuffled = Sampler(VOCAB).sample(logits[torch.tensor(order)], [requests[place] for place in order])
    assert shuffled == [together[place] for place in order]


@settings(max_examples=60, deadline=None)
@given(requests=st.lists(REQUESTS, min_size=1, max_size=9), seed=st.integers(0, 99), rows=st.integers(0, 4))
def test_chunks_of_any_size_give_the_same(requests, seed, rows):
    logits = random_logits(len(requests), seed)
    whole = Sampler(VOCAB).sample(logits, requests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler_module, "CHUNK_NUMBERS", rows * VOCAB)
        assert Sampler(VOCAB).sample(logits, requests) == whole


def test_a_vocabulary_larger_than_a_chunk():
    vocab = sampler_module.CHUNK_NUMBERS + 100
    logits = random_logits(3, vocab=vocab) * 4
    requests = [
        request(temperature=0.0),
        request(temperature=1.0, top_p=0.9, seed=4, logprobs=2),
        request(top_k=30, seed=5, output=[3]),
    ]
    for made, row, sampled in zip(requests, logits.numpy(), Sampler(vocab).sample(logits, requests), strict=True):
        params = made.sampling
        p = oracle.probabilities(row, temperature=params.temperature or 1e-3, top_k=params.top_k, top_p=params.top_p)
        token, lead = oracle.draw(p, row, params.temperature or 1e-3, made.seed, made.num_output)
        assert lead > 1e-4 and sampled.token_id == token


@settings(max_examples=150, deadline=None)
@given(made=REQUESTS, seed=st.integers(0, 99))
def test_every_step_of_the_order_against_the_oracle(made, seed):
    logits = random_logits(1, seed)
    params = made.sampling
    forbidden = set(range(VOCAB)) - set(made.token_mask.tokens) if made.token_mask else set()
    if made.num_output < params.min_tokens:
        forbidden |= made.stop_ids
    x = oracle.penalised(
        logits[0].numpy(),
        made.token_ids[: made.num_prompt],
        made.output_ids,
        repetition=params.repetition_penalty,
        presence=params.presence_penalty,
        frequency=params.frequency_penalty,
        bias=params.logit_bias,
        forbidden=forbidden,
    )
    if params.temperature == 0:
        assert tokens_of(logits, [made]) == [int(x.argmax())]
        return
    filters = {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p, "min_p": params.min_p}
    if oracle.nearest_border(x, **filters) < 1e-5:
        return
    p = oracle.probabilities(x, **filters)
    for made.seed in range(seed, seed + 15):
        token, lead = oracle.draw(p, x, params.temperature, made.seed, made.num_output)
        assert tokens_of(logits, [made]) == [token] or lead < 1e-4


def test_greedy_takes_the_lowest_of_equals():
    assert one(line(t7=3, t9=3, t39=3), request(temperature=0.0)) == 7


def test_greedy_ignores_the_filters_and_the_seed():
    made = [request(temperature=0.0, top_k=5, top_p=0.1, min_p=0.2, seed=seed) for seed in range(9)]
    assert tokens_of(line(t7=3, t9=2.999).expand(9, -1).contiguous(), made) == [7] * 9


def test_the_choice_depends_on_seed_and_position_only():
    logits = torch.zeros(VOCAB)
    first = one(logits, request("a", prompt=[2], output=[8, 9], seed=5))
    assert one(logits, request("b", prompt=[4, 5, 6, 7], output=[1, 2], seed=5, index=3)) == first
    by_position = {one(logits, request(output=[0] * position, seed=5)) for position in range(30)}
    by_seed = {one(logits, request(seed=seed)) for seed in range(30)}
    assert len(by_position) > 10 and len(by_seed) > 10


def test_completions_of_one_submission_differ():
    made = expand_submission(
        RequestId("r"), [1, 2], SamplingParams(n=20, seed=7), vocab_size=VOCAB, eos_token_ids=(EOS,)
    )
    logits = torch.zeros(20, VOCAB)
    sampled = tokens_of(logits, made)
    assert len(set(sampled)) > 5
    assert tokens_of(logits, made) == sampled


def test_penalties_follow_the_output_as_it_grows():
    penalties = {"repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    made = request(prompt=[5, 6, 6], temperature=0.0, **penalties)
    stepping = Sampler(VOCAB)
    for step in range(200):
        logits = random_logits(1, step) / 4 + line(t8=1.5)
        x = oracle.penalised(
            logits[0].numpy(), [5, 6, 6], made.output_ids, repetition=1.5, presence=0.5, frequency=0.25
        )
        token = stepping.sample(logits, [made])[0].token_id
        assert token == int(x.argmax())
        # whoever takes over half way, after a preemption or elsewhere, goes on as before
        assert Sampler(VOCAB).sample(logits, [made])[0].token_id == token
        made.token_ids.append(token)
    assert len(set(made.output_ids)) > 15


def test_repetition_counts_the_prompt_but_the_other_penalties_do_not():
    logits = line(t3=2, t4=1.9)
    assert one(logits, request(temperature=0.0, prompt=[3])) == 3
    assert one(logits, request(temperature=0.0, prompt=[3], repetition_penalty=1.2)) == 4
    assert one(logits, request(temperature=0.0, prompt=[3], presence_penalty=2.0, frequency_penalty=2.0)) == 3
    assert one(logits, request(temperature=0.0, output=[3], presence_penalty=0.2)) == 4
    assert one(logits, request(temperature=0.0, output=[3, 3], frequency_penalty=0.06)) == 4
    assert one(logits, request(temperature=0.0, output=[3], frequency_penalty=0.06)) == 3


def test_the_smallest_repetition_penalty_does_not_break_the_row():
    logits = line(t3=2, t4=-5, t5=float("-inf"))
    assert one(logits, request(temperature=0.0, prompt=[3, 4, 5], repetition_penalty=1e-300)) == 3
    assert one(logits, request(temperature=1.0, prompt=[3, 4, 5], repetition_penalty=1e-300)) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bias_of_100_decides(temperature):
    logits = line(t3=30, t4=-30)
    for seed in range(20):
        assert one(logits, request(temperature=temperature, seed=seed, logit_bias={4: 100.0})) == 4
        assert one(logits, request(temperature=temperature, seed=seed, logit_bias={3: -100.0})) != 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_tokens_wait_for_min_tokens(temperature):
    logits = line(t1=50, t9=49, t5=20)

    def after(num_output, stop_ids, **sampling):
        made = request(temperature=temperature, output=[7] * num_output, stop_ids=stop_ids, **sampling)
        return one(logits, made)

    assert after(0, (EOS, 9), min_tokens=3) == 5
    assert after(2, (EOS, 9), min_tokens=3) == 5
    assert after(3, (EOS, 9), min_tokens=3) in ({EOS} if temperature == 0 else {EOS, 9})
    assert after(2, (EOS,), min_tokens=3) == 9
    # with ignore_eos, EOS is an ordinary token
    assert after(0, (), min_tokens=3, ignore_eos=True) in ({EOS} if temperature == 0 else {EOS, 9})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_row_waits_for_its_own_min_tokens(temperature):
    logits = line(t1=50, t9=25).expand(3, -1).contiguous()
    requests = [request(temperature=temperature, output=[7], min_tokens=num) for num in (2, 1, 3)]
    assert tokens_of(logits, requests) == [9, EOS, 9]


def test_the_smallest_temperature_draws_among_the_largest():
    drawn = {one(line(t7=3, t8=2.999, t9=3), request(temperature=5e-324, seed=seed)) for seed in range(20)}
    assert drawn == {7, 9}


def test_a_mask_that_does_not_bind_is_as_none():
    mask, made = Allow(2), request(temperature=0.0, min_tokens=2, stop_ids=(7,))
    sampler, logits = Sampler(VOCAB), line(t7=90, t5=80)[None]
    made.token_mask = mask
    assert sampler.sample(logits, [made])[0].token_id == 2
    mask.binds = False
    assert sampler.sample(logits, [made])[0].token_id == 5


def test_a_mask_outweighs_any_bias():
    mask = Allow(2, 33)
    assert one(line(t5=90), request(temperature=0.0, mask=mask, logit_bias={7: 100.0, 33: 1.0})) == 33
    assert {one(line(t5=90), request(mask=mask, seed=seed)) for seed in range(30)} == {2, 33}


def test_log_probabilities_are_the_model_s_own():
    logits = random_logits(3)
    logits[0, EOS] = 9.0
    logits[0, [12, 20]] = 5.0
    requests = [
        request(temperature=0.0, logprobs=4, min_tokens=2, logit_bias={5: 50.0}, repetition_penalty=1.7),
        request(temperature=3.0, logprobs=0, top_k=3, mask=Allow(2, 3)),
        request(temperature=0.0),
    ]
    exact = logits.double().numpy()
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    first, second, third = Sampler(VOCAB).sample(logits, requests)
    assert first.token_id == 5 and abs(first.logprob - exact[0, 5]) < 1e-6
    assert [token for token, _ in first.top_logprobs[:3]] == [EOS, 12, 20] and len(first.top_logprobs) == 4
    assert all(abs(value - exact[0, token]) < 1e-6 for token, value in first.top_logprobs)
    assert second.top_logprobs == () and abs(second.logprob - exact[1, second.token_id]) < 1e-6
    assert third.logprob is None and third.top_logprobs == ()


def test_more_log_probabilities_than_tokens():
    sampled = Sampler(3).sample(torch.tensor([[0.0, 2.0, 1.0]]), [request(prompt=[0], temperature=0.0, logprobs=20)])
    assert [token for token, _ in sampled[0].top_logprobs] == [1, 2, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "bad", [[float("nan")] * VOCAB, [0.0] * 39 + [float("nan")], [float("-inf")] * VOCAB, [0.0] * 39 + [float("inf")]]
)
def test_logits_that_are_no_numbers_name_the_request(temperature, bad):
    logits = random_logits(3)
    logits[1] = torch.tensor(bad)
    requests = [request("a"), request("b", index=2, output=[4], temperature=temperature), request("c")]
    with pytest.raises(SamplingError, match=r"request b\[2\]: .* at output position 1") as caught:
        Sampler(VOCAB).sample(logits, requests)
    assert (caught.value.request_id, caught.value.index) == ("b", 2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_allowed_names_the_request(temperature):
    requests = [request("a"), request("b", temperature=temperature, mask=Allow())]
    with pytest.raises(DeadEnd, match=r"request b\[0\]: the constraint allows no token"):
        Sampler(VOCAB).sample(random_logits(2), requests)
    everything = request("c", temperature=temperature, stop_ids=range(VOCAB), min_tokens=1)
    with pytest.raises(SamplingError, match=r"request c\[0\]"):
        Sampler(VOCAB).sample(random_logits(1), [everything])


def test_no_rows():
    assert Sampler(VOCAB).sample(torch.empty(0, VOCAB), []) == []


def test_a_request_id_that_comes_again_is_another_request():
    reused = Sampler(VOCAB)
    logits = torch.zeros(1, VOCAB)
    for seed in range(20):
        made = request("same", seed=seed, temperature=1.0)
        assert reused.sample(logits, [made])[0].token_id == one(logits[0], made)


def test_what_it_knows_does_not_grow():
    keeping = Sampler(VOCAB)
    for step in range(50):
        keeping.sample(random_logits(2), [request(str(step)), request(str(step + 1), repetition_penalty=1.1)])
        assert len(keeping._rows) == 2
