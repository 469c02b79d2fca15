"""The router's configuration: what is refused, and how."""

import json

import pytest

from baleen.config_file import from_dict, to_dict
from baleen.errors import ConfigError
from router.config import RouterProcessConfig, load_router_config


def test_a_file_becomes_a_configuration(tmp_path):
    path = tmp_path / "router.json"
    path.write_text(json.dumps({"ranks": "a:1,b:2", "limits": {"reserve_s": 5}, "parameters": {"near_tie": 0}}))
    config = load_router_config(path)
    assert (config.ranks, config.limits.reserve_s, config.parameters.near_tie) == ("a:1,b:2", 5.0, 0.0)
    assert from_dict(RouterProcessConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({}, "exactly one must be given"),
        ({"ranks": "a:1", "redis": {"url": "redis://x"}}, "exactly one must be given"),
        ({"redis": {"url": "http://x"}}, "redis.url is 'http://x'"),
        ({"ranks": "a:1", "listen": "9000"}, "listen is '9000'"),
        ({"ranks": "a:1", "policy": "best"}, 'policy is "best"'),
        ({"ranks": "a:1", "max_queued": 0}, "max_queued is 0"),
        ({"ranks": "a:1", "polcy": "cost"}, "nearest is policy"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, raw, message):
    path = tmp_path / "router.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=message) as raised:
        load_router_config(path)
    assert str(path) in str(raised.value)
