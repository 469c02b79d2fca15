"""The sampler of a device gives the tokens, log-probabilities and refusals of the one on the CPU."""

import numpy as np
import pytest
import torch

from baleen.ids import RequestId
from baleen.sampling import SamplingParams
from kernels.testing.shapes import generator
from workers.engine.sampler import Sampler, SamplingError
from workers.engine.submission import expand_submission

VOCAB = 70


class Mask:
    """Allows every third token."""

    binds = True

    def fill(self, bitmask):
        for token in range(0, VOCAB, 3):
            bitmask[token // 32] |= np.int32(np.uint32(1 << token % 32).view(np.int32))

    def accept(self, token_id):
        del token_id

    @property
    def problem(self):
        return ""


def request(number, **sampling):
    found = expand_submission(
        RequestId(f"r{number}"),
        [3, 5, 5, 9],
        SamplingParams(seed=number, **sampling),
        vocab_size=VOCAB,
        eos_token_ids=(1,),
        prefix_cache=False,
        salt=b"",
        priority=0,
        deadline=None,
        num_delivered=0,
    )
    return found[0]


def requests():
    made = [
        request(0, temperature=0.0),
        request(1, temperature=1.0),
        request(2, temperature=0.8, top_k=7, top_p=0.9),
        request(3, temperature=1.2, min_p=0.05, logprobs=3),
        request(4, temperature=0.0, repetition_penalty=1.5, presence_penalty=0.3, frequency_penalty=0.2),
        request(5, temperature=1.0, logit_bias={4: 5.0, 60: -3.0}, min_tokens=9, stop_token_ids=frozenset({8, 60})),
        request(6, temperature=1.0, top_p=0.5),
        request(7, temperature=0.0, logprobs=2),
    ]
    made[6].token_mask = Mask()
    return made


def step(rows, tokens):
    for row, token in zip(rows, tokens, strict=True):
        row.token_ids.append(token.token_id)


def device_sampler(device):
    from workers.engine.device_sampler import DeviceSampler

    return DeviceSampler(VOCAB, torch.device(device))


def test_the_same_tokens_step_by_step(device):
    plain, kernels = Sampler(VOCAB), device_sampler(device)
    random = generator()
    rows = requests()
    for _ in range(2):
        logits = torch.randn(len(rows), VOCAB, generator=random) * 2
        expected = plain.sample(logits, rows)
        found = kernels.sample(logits.to(device), rows)
        assert [token.token_id for token in found] == [token.token_id for token in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-6)
            assert [token for token, _ in one.top_logprobs] == [token for token, _ in other.top_logprobs]
        step(rows, expected)
        rows = rows[1:]


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_what_cannot_be_chosen_from_names_its_request(device, value, shown):
    rows = requests()[:3]
    logits = torch.zeros(3, VOCAB)
    logits[1, 5] = value
    with pytest.raises(SamplingError, match=f"the best logit is {shown}") as caught:
        device_sampler(device).sample(logits.to(device), rows)
    assert caught.value.request_id == rows[1].id
