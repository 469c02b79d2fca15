"""A Ray of others that loses its head, killed by SIGKILL, while `baleen up` waits within a call of it."""

import json
import subprocess

import pytest

from tests.support.namespace import can_have_namespaces, namespace_command
from workers.model.make_checkpoint import PRESETS, CheckpointRecipe, make_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_have_namespaces(), reason="network namespaces are not allowed here"),
]


def test_up_ends_with_the_address_and_leaves_nothing_of_its_own(tmp_path):
    recipe = CheckpointRecipe(config=PRESETS["tiny"], dtype="float32", tokenizer="text")
    make_checkpoint(tmp_path / "model", recipe, progress=False)
    command = namespace_command("tests.support.lost_head_scenario", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["code"], seen["output"]) == (70, ""), seen["errors"]
    assert f"error: Ray's head at {seen['address']} has given no answer for 2 s" in seen["errors"]
    assert [path for path in seen["files"] if not path.endswith("run/baleen")] == []
    assert seen["raylets"] == 1, "what is not its own goes on"
