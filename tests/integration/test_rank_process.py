"""One rank as a real process: readiness, health, bad input, draining, and every way to end with its exit code."""

import json
import signal
import subprocess
import sys

import pytest

from tests.support.rank_client import REPO, rank_processes, submit
from tests.support.tiny_checkpoint import make_tiny, shards

LONG = {"max_tokens": 100_000}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


def last_line(rank):
    return rank.log.strip().splitlines()[-1]


def test_a_rank_gets_ready_serves_and_answers_health(checkpoint, tmp_path):
    with rank_processes(checkpoint, tmp_path) as (rank,):
        ready = rank.expect("ready")
        assert (ready["rank"], ready["world_size"], ready["pid"]) == (0, 1, rank.process.pid)
        assert (ready["vocab_size"], ready["num_blocks"], ready["eos_token_ids"]) == (288, 64, [1])
        assert [name for name, _ in ready["startup"]] == [
            "import", "join", "open", "read", "convert", "allocate", "tokenizer", "await others", "warm up",
        ]  # fmt: skip
        submit(rank, "a", [5, 6, 7], logprobs=2)
        finish = rank.expect_finish("a")
        assert finish["finish"] == "length" and finish["prompt_tokens"] == 3
        assert len(rank.tokens_of("a")) == 8
        assert len(finish["logprobs"]) == 1 and len(finish["top_logprobs"][0]) == 2
        rank.send(type="health")
        health = rank.expect("health")
        assert health["rank"] == 0 and health["ended"] is None and health["phase"] in ("idle", "exchange")
        rank.signal(signal.SIGTERM)
        assert rank.wait() == 0
        assert rank.events[-1] == {"type": "ended", "cause": "SIGTERM received"}
        assert '"event":"ready"' in rank.log and '"warm_up_s":' in rank.log


def test_malformed_commands_are_answered_and_harm_nothing(checkpoint, tmp_path):
    with rank_processes(checkpoint, tmp_path) as (rank,):
        rank.send_raw(b"what?\n\n\xff\xfe{\n[1,2]\n")
        rank.send(type="submit", id="b", token_ids=[1], sampling={"max_tokens": -1})
        rank.send(type="submit", id="c", token_ids=[999])
        rank.send(type="abort", id="never seen")
        submit(rank, "d", [9])
        rank.expect_finish("d")
        refused = [event for event in rank.events if event["type"] == "refused"]
        assert [(event["request_id"], event["field"]) for event in refused] == [
            (None, "message"), (None, "message"), (None, "message"), ("b", "max_tokens"), ("c", "prompt"),
        ]  # fmt: skip
        assert "999" in refused[-1]["message"] and "0 to 287" in refused[-1]["message"]


def test_sigterm_finishes_what_runs_and_refuses_what_comes(checkpoint, tmp_path):
    with rank_processes(checkpoint, tmp_path) as (rank,):
        rank.expect("ready")
        submit(rank, "running", [5, 6, 7], max_tokens=200)
        rank.expect_output("running")
        rank.signal(signal.SIGTERM)
        # the signal and the pipe race, so that a few requests may still be taken; a refusal must come in the end
        for number in range(1000):
            submit(rank, f"late-{number}", [5], max_tokens=1)
            late = rank.expect(
                lambda event, number=number: (
                    event.get("request_id") == f"late-{number}"
                    or any(o["id"] == f"late-{number}" for o in event.get("outputs", ()))
                )
            )
            if late["type"] == "refused":
                break
        assert late["error"] == "DrainingError" and "SIGTERM" in late["message"]
        assert rank.wait() == 0
        assert len(rank.tokens_of("running")) == 200


def test_what_cannot_finish_in_the_time_to_drain_is_answered(checkpoint, tmp_path):
    with rank_processes(checkpoint, tmp_path, parallel={"drain_timeout_s": 0.2}, cache={"num_blocks": 2000}) as (rank,):
        submit(rank, "endless", [5], **LONG)
        rank.expect_output("endless")
        rank.signal(signal.SIGTERM)
        assert rank.wait() == 0
        (end,) = [o for event in rank.events for o in event.get("outputs", ()) if "finish" in o]
        assert end["finish"] == "failed" and "draining" in end["detail"]


def test_a_rank_without_a_supervisor_ends_soon(checkpoint, tmp_path):
    with rank_processes(checkpoint, tmp_path, cache={"num_blocks": 2000}) as (rank,):
        submit(rank, "endless", [5], **LONG)
        rank.expect_output("endless")
        rank.close_stdin()
        assert rank.wait(20.0) == 0
        assert rank.events[-1] == {"type": "ended", "cause": "the supervisor closed the rank's input"}


def test_a_rank_whose_reader_is_gone_ends_soon(checkpoint, tmp_path):
    config = {"model": {"path": str(checkpoint)}, "cache": {"num_blocks": 64}}
    path = tmp_path / "rank.json"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "workers.main", "--config", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPO) as process:
        assert process.stdout.readline().startswith(b'{"type":"ready"')
        process.stdout.close()
        process.stdin.write(b'{"type": "health"}\n')
        process.stdin.flush()
        assert process.wait(20.0) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_is_stopped_while_it_waits_for_the_others_exits_at_once(checkpoint, tmp_path, number):
    (tmp_path / "alone").mkdir()
    parallel = {"world_size": 2, "join_timeout_s": 100.0, "rendezvous": f"file://{tmp_path}/alone/rendezvous"}
    with rank_processes(checkpoint, tmp_path, parallel=parallel) as (rank,):
        rank.send(type="health")
        assert rank.expect("health")["phase"] == "joining"
        rank.signal(number)
        assert rank.wait(20.0) == 0
        assert "stopped while starting" in last_line(rank)


def test_a_bad_checkpoint_ends_the_rank_with_one_line_and_its_code(tmp_path):
    broken = make_tiny(tmp_path / "broken")
    shard = shards(broken)[0]
    shard.write_bytes(shard.read_bytes()[:-10])
    with rank_processes(broken, tmp_path) as (rank,):
        assert rank.wait() == 3
        # before it, only which kernels it would have used
        errors = [line for line in rank.log.splitlines() if '"level":"info"' not in line]
        assert len(errors) == 1
        assert shard.name in errors[0] and '"level":"error"' in errors[0]
        assert rank.events[-1]["type"] == "ended" and shard.name in rank.events[-1]["cause"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ('{"model": {"path": "m"}, "engin": 1}', "engin is not a known key")],
)
def test_a_bad_configuration_ends_the_rank_with_one_line_and_its_code(tmp_path, content, message):
    path = tmp_path / "rank.json"
    path.write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "workers.main", "--config", str(path)], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr


BREAK_STEPS = """
import workers.model.runner

def run(runner, *step):
    raise RuntimeError("no memory left")

workers.model.runner.Runner.run = run
"""
HANG_STEPS = """
import threading
import workers.model.runner

workers.model.runner.Runner.run = lambda runner, *step: threading.Event().wait()
"""
PRINT_A_LOT = """
import os
import workers.model.runner

whole = workers.model.runner.Runner.run

def run(runner, *step):
    print("chatter")
    os.write(1, b"more chatter\\n")
    return whole(runner, *step)

workers.model.runner.Runner.run = run
"""


def test_a_fault_in_a_step_ends_the_rank_with_its_trace_and_one_clear_last_line(checkpoint, tmp_path):
    with rank_processes(checkpoint, tmp_path, sabotage=BREAK_STEPS) as (rank,):
        submit(rank, "a", [5])
        assert rank.wait() == 70
        assert "Traceback" in rank.log
        assert '"event":"rank failed","phase":"compute","error":"RuntimeError: no memory left"' in last_line(rank)
        assert rank.events[-1] == {"type": "ended", "cause": "RuntimeError: no memory left"}
        assert rank.tokens_of("a") == []


@pytest.mark.slow
def test_a_fault_in_a_step_is_named_by_the_other_ranks(checkpoint, tmp_path):
    with rank_processes(checkpoint, tmp_path, world_size=2, sabotage=BREAK_STEPS) as ranks:
        submit(ranks[0], "a", [5])
        assert [rank.wait() for rank in ranks] == [75, 70]
        assert "rank 1 failed (compute): RuntimeError: no memory left" in last_line(ranks[0])


def test_health_is_answered_while_the_step_loop_hangs_and_says_so(checkpoint, tmp_path):
    with rank_processes(checkpoint, tmp_path, sabotage=HANG_STEPS) as (rank,):
        rank.expect("ready")
        submit(rank, "a", [5])
        seconds = []
        while len(seconds) < 3:
            rank.send(type="health")
            health = rank.expect("health")
            if health["phase"] == "compute":
                seconds.append(health["seconds_in_phase"])
        assert health["step"] == 1 or health["step"] == 0
        assert seconds == sorted(seconds) and seconds[0] < seconds[-1]


def test_what_libraries_print_never_mixes_with_the_events(checkpoint, tmp_path):
    with rank_processes(checkpoint, tmp_path, sabotage=PRINT_A_LOT) as (rank,):
        submit(rank, "a", [5, 6, 7])
        rank.expect_finish("a")
        rank.close_stdin()
        assert rank.wait() == 0
        assert "chatter" in rank.log and "more chatter" in rank.log


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_other_with_its_name(checkpoint, tmp_path, victim):
    with rank_processes(checkpoint, tmp_path, world_size=2, cache={"num_blocks": 2000}) as ranks:
        for rank in ranks:
            rank.expect("ready")
        survivor = ranks[1 - victim]
        submit(survivor, "endless", [5], **LONG)
        survivor.expect_output("endless")
        ranks[victim].signal(signal.SIGKILL)
        assert survivor.wait(20.0) == 75
        assert survivor.events[-1]["type"] == "ended" and f"rank {victim}" in survivor.events[-1]["cause"]
        assert f"rank {victim}" in last_line(survivor) and "epoch ended" in last_line(survivor)


@pytest.mark.slow
def test_a_rank_that_cannot_load_is_named_by_the_others(checkpoint, tmp_path):
    broken = make_tiny(tmp_path / "broken")
    shards(broken)[0].unlink()
    (tmp_path / "bad").mkdir()
    good_place = {"world_size": 2, "rendezvous": f"file://{tmp_path}/rendezvous"}
    bad_place = {**good_place, "rank": 1}
    with (
        rank_processes(checkpoint, tmp_path, parallel=good_place) as (good,),
        rank_processes(broken, tmp_path / "bad", parallel=bad_place) as (bad,),
    ):
        assert bad.wait() == 3
        assert good.wait() == 75
        assert "rank 1 failed (load)" in last_line(good)


@pytest.mark.slow
def test_one_rank_told_to_leave_takes_its_group_along_in_order(checkpoint, tmp_path):
    with rank_processes(checkpoint, tmp_path, world_size=2) as ranks:
        for number, rank in enumerate(ranks):
            rank.expect("ready")
            submit(rank, f"r{number}", [5, 6], max_tokens=100)
            rank.expect_output(f"r{number}")
        ranks[1].signal(signal.SIGTERM)
        assert [rank.wait() for rank in ranks] == [0, 0]
        assert [len(rank.tokens_of(f"r{number}")) for number, rank in enumerate(ranks)] == [100, 100]
        assert "rank 1 of the group drains" in ranks[0].events[-1]["cause"]


@pytest.mark.slow
def test_both_ranks_of_a_group_compute_the_tokens_of_one_alone(checkpoint, tmp_path):
    prompts = [[5, 6, 7], list(range(3, 203))]
    tokens = []
    for world_size in (1, 2):
        place = tmp_path / str(world_size)
        place.mkdir()
        with rank_processes(checkpoint, place, world_size=world_size) as ranks:
            for number, prompt in enumerate(prompts):
                submit(ranks[number % world_size], str(number), prompt, max_tokens=20)
            for number in range(len(prompts)):
                ranks[number % world_size].expect_finish(str(number))
            tokens.append([ranks[n % world_size].tokens_of(str(n)) for n in range(len(prompts))])
    assert tokens[0] == tokens[1]
