"""Text completions: prompts of every form, batches, echo, log-probabilities, gaps; read by the official client."""

import openai
import pytest

from baleen.errors import QueueFull
from baleen.text.tokenizer import Tokenizer
from tests.support.fake_scores import fake_score
from tests.support.http_gateway import gateway_thread
from tests.support.tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.slow

TOKENIZER = Tokenizer(tiny_tokenizer())
BOS = "<｜begin▁of▁sentence｜>"


def reply(prompt):
    if "full" in prompt:
        return QueueFull("no room")
    return f"<{prompt.removeprefix(BOS)}> größe"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with gateway_thread(reply, tmp_path_factory.mktemp("gateway")) as served:
        yield served


@pytest.fixture
def client(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def ask(client, **fields):
    return client.completions.create(**{"model": "deepseek-v3.2", "max_tokens": 50, **fields})


def test_every_form_of_a_prompt(client, gateway):
    ids = [TOKENIZER.encode("ab"), TOKENIZER.encode("cd")]
    for prompt, texts in (
        ("ab", ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        (ids[0], ["ab"]),
        (ids, ["ab", "cd"]),
    ):
        answer = ask(client, prompt=prompt, n=2, extra_body={"return_token_ids": True})
        assert [choice.text for choice in answer.choices] == [f"<{text}> größe" for text in texts for _ in range(2)]
        assert [choice.index for choice in answer.choices] == list(range(2 * len(texts)))
        assert TOKENIZER.decode(answer.choices[0].token_ids) == "<ab> größe"
        assert answer.usage.completion_tokens == sum(len(choice.token_ids) for choice in answer.choices)
        prompts = [choice.prompt_token_ids for choice in answer.choices[::2]]
        assert answer.usage.prompt_tokens == sum(map(len, prompts))
    assert ask(client, prompt="ab").usage.prompt_tokens == len(TOKENIZER.encode(BOS + "ab"))
    assert gateway.core.meters.active == 0


def test_a_streamed_batch_is_the_whole_one(client):
    fields = {"prompt": ["ab", "cd"], "n": 2, "echo": True}
    whole = ask(client, **fields)
    texts = [""] * 4
    chunks = list(ask(client, **fields, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices] == ["ab<ab> größe"] * 2 + ["cd<cd> größe"] * 2
    assert chunks[-1].usage == whole.usage


def test_log_probabilities_of_answers(client):
    answer = ask(client, prompt="ab", logprobs=2).choices[0]
    assert "".join(answer.logprobs.tokens).startswith("<ab> gr")
    assert len(answer.logprobs.token_logprobs) == len(answer.logprobs.tokens) == len(answer.logprobs.text_offset)
    assert answer.logprobs.text_offset[:3] == [0, *(len("".join(answer.logprobs.tokens[:n])) for n in (1, 2))]


def scores_of(token_ids):
    return [None, *(fake_score(token_ids, place) for place in range(1, len(token_ids)))]


def test_a_prompt_is_scored_as_harnesses_ask(client):
    prompts = [TOKENIZER.encode("größe ab"), TOKENIZER.encode("cd")[:1]]
    for max_tokens in (0, 1):
        answer = ask(client, prompt=prompts, echo=True, logprobs=1, max_tokens=max_tokens, temperature=0)
        for choice, prompt in zip(answer.choices, prompts, strict=True):
            text, found = TOKENIZER.decode(prompt), choice.logprobs
            num = len(prompt)
            assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == num + max_tokens
            assert found.token_logprobs[:num] == scores_of(prompt)
            assert found.top_logprobs[0] is None
            assert [list(top.values()) for top in found.top_logprobs[1:num]] == [[-1.0]] * (num - 1)
            assert choice.text.startswith(text) and (choice.text == text) == (max_tokens == 0)
            assert choice.finish_reason == "length"
        assert answer.usage.completion_tokens == 2 * max_tokens


def test_offsets_of_a_prompt_are_places_in_its_text(client):
    choice = ask(client, prompt="größe ab", echo=True, logprobs=0, max_tokens=3).choices[0]
    prompt = TOKENIZER.encode(BOS + "größe ab")
    found = choice.logprobs
    assert choice.text.startswith("größe ab<")
    assert found.token_logprobs[: len(prompt)] == scores_of(prompt)
    # what begins a text is none of its characters
    start = len(TOKENIZER.encode(BOS))
    assert found.text_offset[: start + 1] == [0] * (start + 1)
    for token, offset in list(zip(found.tokens, found.text_offset, strict=True))[start:]:
        assert "\ufffd" in token or choice.text.startswith(token, offset)
    assert found.text_offset[len(prompt)] == len("größe ab")


def test_a_streamed_prompt_is_the_whole_one(client):
    fields = {"prompt": ["größe ab", "cd"], "n": 2, "echo": True, "logprobs": 2, "max_tokens": 4}
    whole = ask(client, **fields)
    texts, columns = [""] * 4, [{} for _ in range(4)]
    for chunk in ask(client, **fields, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        for name, values in (choice.logprobs.model_dump() if choice.logprobs else {}).items():
            columns[choice.index].setdefault(name, []).extend(values)
    assert texts == [choice.text for choice in whole.choices]
    assert columns == [choice.logprobs.model_dump() for choice in whole.choices]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [[1, -1]]}, "prompt[0][1]"),
        ({"prompt": [[]]}, "prompt[0][0]"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "echo": True, "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "logprobs": 1, "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "n": 9}, "n"),
        ({"prompt": [5] * 100_000}, "prompt"),
    ],
)
def test_what_is_wrong_is_named(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    assert caught.value.param == param


def test_one_refused_prompt_refuses_the_batch(client, gateway):
    with pytest.raises(openai.RateLimitError):
        ask(client, prompt=["ab", "full"])
    assert ask(client, prompt="ab").choices[0].finish_reason == "stop"
