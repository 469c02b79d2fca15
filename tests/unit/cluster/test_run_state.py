"""The state file of a running cluster: one holder, readable by others, and known to be stale once its holder died."""

import json
import os
import stat

import pytest

from baleen.errors import ConfigError
from baleen.redis_config import RedisConfig
from cluster import cli
from cluster.run_state import RunState, StateFile, find_running, find_state, run_directory


@pytest.fixture(autouse=True)
def runtime(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_others_read_what_the_holder_wrote():
    with StateFile("west") as file:
        assert find_state("west").state == RunState(name="west", pid=os.getpid())
        # a longer text, then a shorter one, must not leave a rest
        file.write(RunState(name="west", pid=1, phase="starting", redis=RedisConfig(url="redis://" + "x" * 100)))
        file.write(RunState(name="west", pid=1, phase="ready", routers=("h:1", "h:2"), groups={"p": (1, 2)}))
        found = find_running("west")
        assert (found.routers, found.groups) == (("h:1", "h:2"), {"p": (1, 2)})
    with pytest.raises(ConfigError, match="no cluster named 'west' runs here"):
        find_state("west")


def test_a_name_has_one_holder():
    with StateFile("west"), pytest.raises(ConfigError, match="a cluster named 'west' runs already"):
        StateFile("west")
    with StateFile("west"):
        pass


def test_only_its_owner_can_read_it():
    with StateFile("west"):
        assert stat.S_IMODE((run_directory() / "west.json").stat().st_mode) == 0o600


def test_a_cluster_that_is_not_ready_is_not_running():
    with StateFile("west"), pytest.raises(ConfigError, match="cluster 'west' is starting"):
        find_running("west")


def test_a_state_without_a_holder_is_stale_and_down_clears_it(tmp_path, capsys):
    path = tmp_path / "baleen" / "west.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"name": "west", "pid": 1, "phase": "ready", "unknown": 1}))
    assert not find_state("west").alive
    with pytest.raises(ConfigError, match="has ended without order"):
        find_running("west")
    assert cli.main(["down", "--name", "west"]) == 0
    assert not path.exists() and "had ended without order" in capsys.readouterr().out


def test_down_removes_only_a_folder_that_up_has_made(tmp_path):
    path = tmp_path / "baleen" / "west.json"
    path.parent.mkdir()
    precious = tmp_path / "baleen-precious"
    precious.mkdir()
    path.write_text(json.dumps({"name": "west", "pid": 1, "directory": str(precious)}))
    assert cli.main(["down", "--name", "west"]) == 0
    assert precious.exists() and not path.exists()


def test_other_clusters_are_named_where_one_is_not_found():
    with StateFile("west"), pytest.raises(ConfigError, match="there is west"):
        find_state("east")


def test_a_damaged_state_is_an_error_of_ours(tmp_path):
    path = tmp_path / "baleen" / "west.json"
    path.parent.mkdir()
    path.write_text("[]")
    with pytest.raises(ConfigError, match="is no state of a cluster"):
        find_state("west")
