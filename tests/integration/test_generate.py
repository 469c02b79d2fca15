"""`baleen generate` as its users run it: real ranks, real signals, and no process left behind."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.tiny_checkpoint import make_tiny, shards

REPO = Path(__file__).parents[2]
WAIT_S = 120.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def wordless(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("checkpoint") / "wordless", tokenizer=None)


class Command:
    """One `baleen generate` in its own session, so that whatever it leaves behind can be found and ended."""

    def __init__(self, directory, *words, home):
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "generate", "--model", str(directory), *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=REPO,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(home)},
            start_new_session=True,
        )

    def finish(self, stdin=""):
        """Let it run to its end: exit code, stdout, stderr."""
        out, err = self.process.communicate(stdin, timeout=WAIT_S)
        return self.process.returncode, out, err

    def ranks(self):
        """Process ids of its ranks by rank, as the system knows them."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"workers.main" in words and words[-2].startswith(os.fsencode(self.home)):
                    found[int(words[-2].decode().rsplit("-", 1)[1].removesuffix(".json"))] = int(entry.name)
        return found


@pytest.fixture
def start(tmp_path):
    """Start commands; afterwards no rank of theirs and no file of theirs may be left."""
    home = tmp_path / "home"
    home.mkdir()
    started = []

    def launch(directory, *words):
        started.append(Command(directory, *words, home=home))
        return started[-1]

    yield launch
    left = {}
    for command in started:
        if command.process.poll() is None:
            command.process.kill()
        command.process.communicate()
        left |= command.ranks()
    for pid in left.values():
        os.kill(pid, signal.SIGKILL)
    assert left == {}, "ranks were left behind"
    assert list(home.iterdir()) == [], "files were left behind"


def write_ids(tmp_path, prompts):
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(prompts))
    return path


def completions(out):
    return [json.loads(line) for line in out.splitlines()]


def test_a_prompt_becomes_text_and_a_summary(checkpoint, start):
    code, out, err = start(checkpoint, "--prompt", "hello", "--max-tokens", 12, "--temperature", 0).finish()
    assert code == 0 and out.endswith("\n") and len(out) > 1
    startup, summary = err.splitlines()
    assert startup.startswith("start-up ") and all(part in startup for part in ("open", "read", "convert", "warm up"))
    assert summary.startswith("5 prompt tokens (0 cached), ") and summary.endswith(" tokens/s")


def test_json_has_one_object_per_completion_in_order(checkpoint, start, tmp_path):
    ids = write_ids(tmp_path, [[5, 6, 7], [9] * 130, [8]])
    words = ("--prompt-ids", ids, "--max-tokens", 6, "--temperature", 0, "--ignore-eos", "--logprobs", 2)
    code, out, _ = start(checkpoint, *words, "--n", 2, "--json").finish()
    found = completions(out)
    assert code == 0 and [done["prompt_tokens"] for done in found] == [3, 3, 130, 130, 1, 1]
    for done in found:
        assert list(done) == ["token_ids", "text", "finish_reason", "prompt_tokens", "cached_tokens", "logprobs"]
        assert len(done["token_ids"]) == 6 and done["finish_reason"] == "length" and isinstance(done["text"], str)
        assert [entry["token_id"] for entry in done["logprobs"]] == done["token_ids"]
        assert all(len(entry["top"]) == 2 and entry["logprob"] <= 0 for entry in done["logprobs"])
    # greedy completions of one prompt are the same; the second of a long prompt finds its full blocks
    assert [found[2 * k]["token_ids"] == found[2 * k + 1]["token_ids"] for k in range(3)] == [True] * 3
    assert [done["cached_tokens"] for done in found] == [0, 0, 0, 128, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["--ep", 2],
        ["--ep", 4, "--max-running", 1],
        ["--num-blocks", 4, "--max-running", 3],
        ["--max-chunk-tokens", 7, "--max-batch-tokens", 16],
        ["--no-prefix-cache", "--attention", "absorbed"],
    ],
)
def test_neither_ranks_nor_scheduling_change_a_token(wordless, start, tmp_path, words):
    ids = write_ids(tmp_path, [[5, 6, 7], list(range(3, 150)), [8], [9, 9, 9, 9]])
    common = ("--prompt-ids", ids, "--max-tokens", 24, "--temperature", 0.8, "--seed", 5, "--json")
    plain = completions(start(wordless, *common).finish()[1])
    other = completions(start(wordless, *common, *words).finish()[1])
    assert len(plain) == 4 and [done["token_ids"] for done in other] == [done["token_ids"] for done in plain]
    assert all(done["text"] is None for done in plain)


def test_a_stop_string_ends_and_cuts_a_completion(checkpoint, start):
    words = ("--prompt", "hello", "--max-tokens", 40, "--temperature", 0, "--ignore-eos", "--json")
    (whole,) = completions(start(checkpoint, *words).finish()[1])
    stop = next(
        whole["text"][place : place + 2] for place in range(8, 30) if whole["text"][place : place + 2].isascii()
    )
    code, out, _ = start(checkpoint, *words, "--stop", stop).finish()
    (cut,) = completions(out)
    assert code == 0 and cut["finish_reason"] == "stop"
    assert cut["text"] == whole["text"][: whole["text"].index(stop)]
    assert cut["token_ids"] == whole["token_ids"][: len(cut["token_ids"])] and len(cut["token_ids"]) < 40


def test_without_a_tokenizer_ids_are_printed(wordless, start, tmp_path):
    ids = write_ids(tmp_path, [5, 6, 7])
    code, out, _ = start(wordless, "--prompt-ids", ids, "--max-tokens", 5, "--temperature", 0, "--ignore-eos").finish()
    assert code == 0 and len([int(word) for word in out.split()]) == 5


def test_a_deadline_ends_a_completion_with_what_it_has(checkpoint, start):
    words = ("--max-tokens", 50_000, "--num-blocks", 1000, "--ignore-eos", "--deadline", 0.5, "--json")
    code, out, _ = start(checkpoint, "--prompt", "hello", *words).finish()
    (done,) = completions(out)
    assert code == 0 and done["finish_reason"] == "deadline" and 0 < len(done["token_ids"]) < 50_000


def test_interactive_answers_line_by_line_and_survives_a_bad_one(checkpoint, start):
    code, out, err = start(checkpoint, "--interactive", "--max-tokens", 4, "--json").finish(
        "abc\n\n" + "x" * 163841 + "\nabc\n"
    )
    assert code == 0 and [done["prompt_tokens"] for done in completions(out)] == [3, 3]
    assert f"ready: {checkpoint} on 1 rank(s)" in err and "refused: the prompt has 163841 tokens" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--prompt", ""], 2, "the prompt has 0 tokens, at least 1 is needed"),
        (["--prompt-ids", "{ids}"], 2, "prompt 1 holds token 288 at 1, the vocabulary has ids 0 to 287"),
        (["--prompt", "x", "--max-tokens", "200000"], 2, "200000 may be generated, the model has 163840 positions"),
        (["--prompt", "x", "--ep", "3"], 2, "--ep is 3, must divide the model's 8 experts"),
        (["--prompt", "x", "--temperature", "-1"], 2, "temperature is -1.0, must be at least 0.0"),
        (["--prompt", "x", "--logit-bias", '{"288": 1}'], 2, "--logit-bias holds token 288"),
        (["--prompt", "x", "--num-blocks", "0"], 2, "cache.num_blocks is 0, must be at least 1"),
        (["--prompt", "x", "--deadline", "0"], 2, "--deadline is 0.0, must be above 0"),
        (["--prompt", "xyz" * 30, "--num-blocks", "1"], 2, "cache blocks, the whole pool has 1"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_value_and_limit(checkpoint, start, tmp_path, words, code, message):
    ids = str(write_ids(tmp_path, [[1], [2, 288]]))
    found, out, err = start(checkpoint, *(word.replace("{ids}", ids) for word in words)).finish()
    lines = [line for line in err.splitlines() if not line.startswith("start-up")]
    assert found == code and out == ""
    assert len(lines) == 1 and lines[0].startswith("baleen: error: ") and message in lines[0]


def test_text_needs_a_tokenizer(wordless, start):
    code, _, err = start(wordless, "--prompt", "hello").finish()
    assert code == 2 and "tokenizer.json: not found; without it give token ids with --prompt-ids" in err
    code, _, err = start(wordless, "--interactive").finish()
    assert code == 2 and "--interactive needs a tokenizer" in err


@pytest.mark.parametrize("ep", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bad_checkpoint_is_one_line_and_its_code(tmp_path, start, ep):
    broken = make_tiny(tmp_path / "broken")
    shard = shards(broken)[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    code, out, err = start(broken, "--prompt", "x", "--ep", ep).finish()
    assert code == 3 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("baleen: error: ") and shard.name in err


def wait_for_output(command):
    """Wait until the first character of a completion has come."""
    assert command.process.stdout.read(1), command.process.stderr.read()


ENDLESS = (
    "--prompt",
    "hello",
    "--max-tokens",
    60_000,
    "--num-blocks",
    1000,
    "--ignore-eos",
    "--logit-bias",
    '{"68": 50}',
)
"""A prompt whose completion is one letter (68 is the byte "A"), again and again."""


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "number"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_lost_rank_ends_the_command_with_one_line_that_names_it(checkpoint, start, victim, number):
    command = start(checkpoint, *ENDLESS, "--ep", 2)
    wait_for_output(command)
    os.kill(command.ranks()[victim], number)
    code, _, err = command.finish()
    lines = [line for line in err.splitlines() if not line.startswith("start-up")]
    assert code == 75 and len(lines) == 1, err
    assert lines[0].startswith("baleen: error: epoch ended: ") and f"rank {victim}" in lines[0]


@pytest.mark.parametrize("ep", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_ends_quietly_and_takes_its_ranks_along(checkpoint, start, ep, number, code):
    command = start(checkpoint, *ENDLESS, "--ep", ep)
    wait_for_output(command)
    command.process.send_signal(number)
    found, _, err = command.finish()
    assert found == code and "Traceback" not in err


@pytest.mark.slow
def test_an_interrupt_while_the_ranks_start_ends_them_too(checkpoint, start):
    command = start(checkpoint, "--prompt", "x", "--ep", 2)
    deadline = time.monotonic() + WAIT_S
    while len(command.ranks()) < 2:
        assert time.monotonic() < deadline and command.process.poll() is None
    command.process.send_signal(signal.SIGINT)
    code, _, err = command.finish()
    assert code == 130 and "Traceback" not in err


@pytest.mark.slow
def test_ranks_of_a_killed_command_end_by_themselves(checkpoint, start):
    command = start(checkpoint, *ENDLESS, "--ep", 2)
    wait_for_output(command)
    pidfds = [os.pidfd_open(pid) for pid in command.ranks().values()]
    command.process.kill()
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], 9.0)[0], "ended by force, or not at all"
        os.close(pidfd)
    for directory in command.home.iterdir():
        # nobody was left to remove it
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import cluster.commands.generate", ("torch", "numpy", "ray")),
        (
            "import cluster.cli; cluster.cli._parser(['--version'])",
            ("torch", "tokenizers", "cluster.commands.generate"),
        ),
    ],
)
def test_the_command_line_imports_nothing_heavy(program, unwanted):
    program += f"; import sys; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
