"""How Redis is reached: what is refused, how it is named, and that no secret is ever shown."""

import pytest

from baleen.cluster_file import load_cluster_config
from baleen.config_file import from_dict, to_dict
from baleen.errors import ConfigError
from baleen.redis_config import RedisConfig

SECRET = "s3cr3t/#?@:x"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://x"}, "redis.url is 'http://x', must be redis://host:port/db"),
        ({"url": "redis"}, "redis.url is 'redis', must be redis://"),
        ({"url": "redis://"}, "redis.url is 'redis://', must be redis://"),
        ({"url": "unix://socket"}, "redis.url is 'unix://socket', must be redis://"),
        ({"url": "redis://h/zero"}, "with the db 'zero', must be a number"),
        ({"url": "unix:///s?db=-1"}, "with the db '-1', must be a number"),
        ({"url": "redis://h:port"}, "no readable port"),
        ({"url": "redis://h:70000"}, "no readable port"),
        ({"url": "redis://a:1,b:2/0"}, "names several servers"),
        ({"url": "rediss://h?ssl_cert_reqs=none"}, "with the options ssl_cert_reqs, must have none"),
        ({"url": "redis+sentinel://a/main"}, "Sentinel is not asked for the primary"),
        ({"url": "sentinel://a,b/main"}, "Sentinel is not asked for the primary"),
        ({"username": "u"}, "redis.username is set and redis.url is empty"),
        ({"url": "redis://h", "username": "u"}, "redis.username is 'u' without a password"),
        ({"url": "redis://h", "password_env": "A", "password_file": "b"}, "are both set"),
        ({"url": "redis://:p@h", "password_env": "A"}, "must be one of them"),
        ({"url": "redis://u:p@h", "username": "v"}, "redis.url names the user 'u' and redis.username is 'v'"),
        ({"url": "redis://h", "ca_file": "ca"}, "redis.ca_file is set and redis.url is redis://h, must be rediss://"),
        ({"url": "rediss://h", "cert_file": "c"}, "must be set together"),
    ],
)
def test_what_cannot_work_is_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(RedisConfig, settings, key="redis")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@h",
        f"redis://user:{SECRET}@h:port",
        f"redis://user:{SECRET}@h,g",
        f"redis://user:{SECRET}@h/zero",
        f"redis://user:{SECRET}@",
        f"sentinel://user:{SECRET}@h",
        "redis://user:s3cr3t@h?password=s3cr3t",
    ],
)
def test_no_error_shows_a_password(url):
    with pytest.raises(ConfigError) as caught:
        RedisConfig(url=url)
    error = caught.value
    assert "s3cr3t" not in str(error)
    # nor does a traceback of it
    assert error.__suppress_context__ or error.__context__ is None


def test_a_configuration_is_shown_without_user_and_password():
    config = RedisConfig(url="rediss://user:s3cr3t@host:6380/3")
    assert config.shown == "rediss://host:6380/3"
    assert "s3cr3t" not in f"{config} {config!r}" and "user" not in repr(config)


def test_addresses():
    assert RedisConfig(url="redis://h").address() == {"host": "h", "port": 6379, "db": 0}
    assert RedisConfig(url="rediss://u:p@[::1]:1/7").address() == {"host": "::1", "port": 1, "db": 7}
    assert RedisConfig(url="unix:///run/a%20b?db=2").address() == {"path": "/run/a b", "db": 2}


def test_credentials_come_from_the_url_a_variable_or_a_file_as_they_are_now(tmp_path, monkeypatch):
    assert RedisConfig(url="redis://h").credentials() == ("", "")
    assert RedisConfig(url="redis://u:p%40ss@h").credentials() == ("u", "p@ss")
    variable = RedisConfig(url="redis://h", password_env="BALEEN_TEST_PASSWORD")
    with pytest.raises(ConfigError, match="BALEEN_TEST_PASSWORD, which is not set"):
        variable.credentials()
    monkeypatch.setenv("BALEEN_TEST_PASSWORD", "one")
    assert variable.credentials() == ("", "one")
    path = tmp_path / "password"
    file = RedisConfig(url="redis://h", username="u", password_file=str(path))
    with pytest.raises(ConfigError, match="No such file"):
        file.credentials()
    for password in ("one", "two"):
        path.write_text(f"{password}\n")
        assert file.credentials() == ("u", password)
    path.write_text("\n")
    with pytest.raises(ConfigError, match="which is empty"):
        file.credentials()


def test_files_are_relative_to_the_cluster_file(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text("redis: {url: 'rediss://h', password_file: secret, ca_file: /etc/ca, username: u}\n")
    redis = load_cluster_config(path).redis
    assert (redis.password_file, redis.ca_file, redis.cert_file) == (str(tmp_path / "secret"), "/etc/ca", "")
    assert from_dict(RedisConfig, to_dict(redis)) == redis
