"""Arguments of `baleen generate`: what is refused, with which value and limit, before any process starts."""

import argparse
import io
import json

import pytest

from baleen.errors import BaleenError, CheckpointError, ConfigError, InvalidRequest
from cluster.commands import generate
from cluster.commands.generate_input import (
    SamplingDefaults,
    check_prompts,
    encode_prompt,
    load_sampling_defaults,
    read_prompts,
    read_sampling,
)


class Spec:
    """The part of a ModelSpec that is read."""

    vocab_size = 10
    max_positions = 20


def arguments(*words):
    parser = argparse.ArgumentParser()
    generate.add_parser(parser.add_subparsers())
    return parser.parse_args(["generate", "--model", "dir", *words])


def words(flags):
    return [str(word) for flag in flags.items() for word in flag]


def from_file(tmp_path, content):
    path = tmp_path / "ids.json"
    path.write_text(content)
    return read_prompts(arguments("--prompt-ids", str(path)), None)


def test_a_list_is_one_prompt_and_a_list_of_lists_a_batch(tmp_path):
    assert from_file(tmp_path, "[1, 2, 3]") == [[1, 2, 3]]
    assert from_file(tmp_path, "[[1], [2, 3]]") == [[1], [2, 3]]


def test_prompts_come_from_stdin_too(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("[[4, 5]]"))
    assert read_prompts(arguments("--prompt-ids", "-"), None) == [[4, 5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("{}", "holds dict, expected a list of token ids"),
        ("[]", "holds an empty list"),
        ("[1, 2.5]", "prompt 0 holds 2.5, expected integers"),
        ("[[1], [true]]", "prompt 1 holds True, expected integers"),
        ("[[1], 2]", "prompt 1 holds 2, expected integers"),
        ("[1, [2]]", "prompt 0 holds [2], expected integers"),
        ("[null]", "prompt 0 holds None, expected integers"),
        ('["a"]', "prompt 0 holds 'a', expected integers"),
    ],
)
def test_a_file_that_holds_no_prompts_is_named(tmp_path, content, message):
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path, content)
    assert message in str(caught.value) and "ids.json" in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.json: cannot be read: No such file"):
        read_prompts(arguments("--prompt-ids", "nowhere.json"), None)


def test_a_text_prompt_needs_a_tokenizer():
    with pytest.raises(
        ConfigError, match=r"dir/tokenizer.json: not found; without it give token ids with --prompt-ids"
    ):
        encode_prompt("hello", None, arguments("--prompt", "x").model)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[]], "the prompt has 0 tokens"),
        ([[1], []], "prompt 1 has 0 tokens"),
        ([[1, 10]], "the prompt holds token 10 at 1, the vocabulary has ids 0 to 9"),
        ([[0], [-1]], "prompt 1 holds token -1 at 0"),
        ([[0] * 17], "the prompt has 17 tokens and 4 may be generated, the model has 20 positions"),
    ],
)
def test_a_prompt_that_cannot_run_is_refused_with_value_and_limit(prompts, message):
    with pytest.raises(InvalidRequest) as caught:
        check_prompts(prompts, Spec, max_tokens=4)
    assert message in str(caught.value)


def test_a_prompt_that_just_fits_is_good():
    check_prompts([[9] * 16], Spec, max_tokens=4)


DEFAULTS = SamplingDefaults(temperature=0.5, top_k=7, top_p=0.9, repetition_penalty=1.1)


def test_flags_count_more_than_the_checkpoint():
    flags = {"--temperature": 0, "--top-k": 3, "--top-p": 1, "--repetition-penalty": 1, "--prompt": "x"}
    sampling = read_sampling(arguments(*words(flags)), DEFAULTS, room=1000)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty) == (0.0, 3, 1.0, 1.0)


def test_the_checkpoint_counts_where_there_is_no_flag():
    sampling = read_sampling(arguments("--prompt", "x"), DEFAULTS, room=1000)
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty) == (0.5, 7, 0.9, 1.1)
    assert sampling.max_tokens == 128


def test_every_flag_reaches_the_sampler():
    flags = {
        "--max-tokens": 9,
        "--min-tokens": 2,
        "--min-p": 0.1,
        "--presence-penalty": 0.2,
        "--frequency-penalty": 0.3,
        "--logprobs": 4,
        "--n": 5,
        "--seed": 6,
        "--logit-bias": '{"3": -1.5}',
        "--prompt": "x",
    }
    repeated = ["--ignore-eos", "--stop-token-id", "7", "--stop-token-id", "8", "--stop", "a", "--stop", "b"]
    sampling = read_sampling(arguments(*words(flags), *repeated), SamplingDefaults(), room=1000)
    assert (sampling.max_tokens, sampling.min_tokens, sampling.min_p) == (9, 2, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.logprobs) == (0.2, 0.3, 4)
    assert (sampling.n, sampling.seed, sampling.ignore_eos) == (5, 6, True)
    assert (sampling.stop_token_ids, sampling.stop, sampling.logit_bias) == ({7, 8}, ("a", "b"), {3: -1.5})


@pytest.mark.parametrize(("room", "expected"), [(1000, 128), (50, 50), (0, 1)])
def test_without_a_flag_the_length_is_what_the_model_has_room_for(room, expected):
    assert read_sampling(arguments("--prompt", "x"), SamplingDefaults(), room=room).max_tokens == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"1": "x"}', '{"1": 101}'])
def test_a_bad_logit_bias_is_refused(text):
    with pytest.raises(InvalidRequest, match=r"logit.bias"):
        read_sampling(arguments("--logit-bias", text, "--prompt", "x"), SamplingDefaults(), room=9)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, SamplingDefaults()),
        ({}, SamplingDefaults()),
        ({"do_sample": True}, SamplingDefaults(temperature=1.0)),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.95}, SamplingDefaults(temperature=0.6, top_p=0.95)),
        ({"do_sample": False, "temperature": 0.6}, SamplingDefaults()),
        ({"temperature": 0.6, "top_k": 5}, SamplingDefaults(top_k=5)),
    ],
)
def test_what_a_checkpoint_recommends(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert load_sampling_defaults(tmp_path) == expected


@pytest.mark.parametrize("content", ["[]", "{", '{"top_p": "high"}', '{"top_k": true}'])
def test_a_broken_generation_config_is_named(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        load_sampling_defaults(tmp_path)


@pytest.mark.parametrize(
    ("flags", "num_prompts", "expected"),
    [
        (["--max-tokens", "60"], 1, 2),
        (["--max-tokens", "124"], 1, 3),
        (["--max-tokens", "124", "--n", "10"], 4, 82),
        (["--max-tokens", "124", "--ep", "2"], 5, 7),
        (["--max-tokens", "1000"], 500, generate.MOST_BLOCKS),
        (["--max-tokens", "100000"], 2, 1563),
        (["--max-tokens", "100", "--num-blocks", "4"], 9, 4),
    ],
)
def test_the_cache_holds_all_prompts_at_once_if_it_can(flags, num_prompts, expected):
    args = arguments(*flags, "--prompt", "x")
    prompts = [[1, 2, 3, 4]] * num_prompts
    sampling = read_sampling(args, SamplingDefaults(), room=1000)
    assert generate._rank_config(args, prompts, sampling).cache.num_blocks == expected


def test_a_small_batch_limit_needs_no_second_flag():
    args = arguments("--max-batch-tokens", "7", "--prompt", "x")
    sampling = read_sampling(args, SamplingDefaults(), room=1000)
    assert generate._rank_config(args, [[1]], sampling).engine.max_running == 7
    with pytest.raises(ConfigError, match="max_batch_tokens is 0"):
        generate._rank_config(arguments("--max-batch-tokens", "0", "--prompt", "x"), [[1]], sampling)


def test_errors_of_arguments_have_exit_code_2_or_3():
    codes = {kind.exit_code for kind in (ConfigError, InvalidRequest, CheckpointError)}
    assert codes == {2, 3} and all(issubclass(k, BaleenError) for k in (ConfigError, InvalidRequest, CheckpointError))
