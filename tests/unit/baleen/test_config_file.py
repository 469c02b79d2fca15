"""Configuration files: round trip, and every mistake named by its key."""

import json
from dataclasses import fields, is_dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, RankConfig, ServeConfig
from baleen.config_file import from_dict, load_rank_config, to_dict
from baleen.errors import ConfigError
from baleen.redis_config import RedisConfig

FULL = RankConfig(
    model=ModelConfig(path="/models/x", compute_dtype="bfloat16", attention_form="absorbed", num_threads=3),
    cache=CacheConfig(dtype="float8", num_blocks=7, prefix_cache=False),
    engine=EngineConfig(max_batch_tokens=100, max_running=9, aging_s=0.5, audit="step"),
    parallel=ParallelConfig(rank=1, world_size=4, epoch="e", rendezvous="file:///tmp/x", drain_timeout_s=2.0),
    serve=ServeConfig(
        listen="[::1]:0", role="decode", pool="p", group="p-0", redis=RedisConfig(url="redis://h:1"), cluster="c"
    ),
    log_level="warning",
)


def test_a_configuration_survives_the_file(tmp_path):
    path = tmp_path / "rank.json"
    path.write_text(json.dumps(to_dict(FULL)))
    assert load_rank_config(path) == FULL


@given(
    num_blocks=st.integers(1, 10**6),
    aging_s=st.floats(0.001, 1e6),
    prefix_cache=st.booleans(),
    dtype=st.sampled_from(["float32", "bfloat16", "float8"]),
    path=st.text(),
)
def test_any_good_configuration_comes_back_equal(num_blocks, aging_s, prefix_cache, dtype, path):
    config = RankConfig(
        model=ModelConfig(path=path),
        cache=CacheConfig(dtype=dtype, num_blocks=num_blocks, prefix_cache=prefix_cache),
        engine=EngineConfig(aging_s=aging_s),
    )
    assert from_dict(RankConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_what_is_left_out_keeps_its_default():
    config = from_dict(RankConfig, {"model": {"path": "m"}, "engine": {"max_running": 5}})
    assert config == RankConfig(model=ModelConfig(path="m"), engine=EngineConfig(max_running=5))


def test_whole_numbers_are_good_seconds():
    assert from_dict(EngineConfig, {"aging_s": 3}).aging_s == 3.0
    assert type(from_dict(EngineConfig, {"aging_s": 3}).aging_s) is float


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"engine": {"max_runing": 4}}, "engine.max_runing is not a known key; the nearest is engine.max_running"),
        ({"cahce": {}}, "cahce is not a known key; the nearest is cache"),
        ({"model": {}}, "model.path is missing"),
        ({"model": "m"}, 'model is "m", must be an object'),
        ({"cache": {"num_blocks": "64"}}, 'cache.num_blocks is "64", must be an integer'),
        ({"cache": {"num_blocks": 64.0}}, "cache.num_blocks is 64.0, must be an integer"),
        ({"cache": {"num_blocks": True}}, "cache.num_blocks is true, must be an integer"),
        ({"cache": {"num_blocks": 0}}, "cache.num_blocks is 0, must be at least 1"),
        ({"cache": {"prefix_cache": 1}}, "cache.prefix_cache is 1, must be true or false"),
        ({"cache": {"dtype": "fp8"}}, 'cache.dtype is "fp8", must be one of float32, bfloat16, float8'),
        ({"cache": {"dtype": ["float8"]}}, 'cache.dtype is ["float8"], must be one of'),
        ({"engine": {"aging_s": None}}, "engine.aging_s is null, must be a finite number"),
        ({"engine": {"aging_s": float("inf")}}, "engine.aging_s is Infinity, must be a finite number"),
        ({"parallel": {"rank": 2, "world_size": 2}}, "parallel.rank is 2, must be from 0 to 1"),
        ({"serve": {"listen": "9000"}}, "serve.listen is '9000', must be host:port"),
        ({"serve": {"listen": "host:70000"}}, "with a port from 0 to 65535"),
        ({"serve": {"listen": "h:1", "advertise": "h:0"}}, "serve.advertise is 'h:0', must be host:port with a port"),
        ({"serve": {"listen": "h:1", "transfer_listen": "h"}}, "serve.transfer_listen is 'h', must be host:port"),
        ({"serve": {"transfer_advertise": "h:1"}}, "serve.transfer_advertise is 'h:1' and serve.listen is empty"),
        ({"serve": {"role": "both"}}, 'serve.role is "both", must be one of prefill, decode, mixed'),
        ({"serve": {"listen": "h:1", "redis": {"url": "http://h"}}}, "redis.url is 'http://h', must be"),
        ({"serve": {"redis": {"url": "redis://h"}}}, "nobody could reach a rank"),
        ({"log_level": "debug"}, 'log_level is "debug", must be one of info, warning, error, off'),
    ],
)
def test_a_mistake_is_named(raw, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(RankConfig, {"model": {"path": "m"}, **raw})
    assert message in str(caught.value)


@pytest.mark.parametrize("raw", [None, [], 3, "text"])
def test_only_an_object_is_a_configuration(raw):
    with pytest.raises(ConfigError, match=r"the configuration is .*, must be an object"):
        from_dict(RankConfig, raw)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"model": {"path": "a", "path": "b"}}', "key 'path' stands twice"),
        (b'{"model": {"path": "a"}, "engin": {}}', "engin is not a known key; the nearest is engine"),
    ],
)
def test_a_bad_file_is_named_with_its_path(tmp_path, content, message):
    path = tmp_path / "rank.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_rank_config(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.json: cannot be read: No such file"):
        load_rank_config(tmp_path / "absent.json")


def test_every_key_can_be_read_back_from_a_file():
    """A new field of a type that the reader does not know fails here, not at a user's."""

    def keys(config):
        return {
            f.name: keys(getattr(config, f.name)) if is_dataclass(getattr(config, f.name)) else None
            for f in fields(config)
        }

    raw = to_dict(FULL)
    assert keys(FULL).keys() == raw.keys()
    assert keys(from_dict(RankConfig, raw)) == keys(FULL)
