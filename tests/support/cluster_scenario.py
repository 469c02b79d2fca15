"""The life of a whole cluster, as an operator sees it: up, used, a rank killed, a group drained, down.

usage: python -m tests.support.cluster_scenario DIRECTORY CONFIG [scales|headless]      in a network namespace

With `scales` it gets load until it has grown, and then less until it has shrunk; then its pool, weights, router and
gateway are changed, and last its `baleen up` is killed. With `headless` Ray loses its head while a request runs.

Prints one JSON object of what was seen; the test looks at it.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from baleen.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from baleen.wire.channel import open_channel
from cluster.run_state import find_running
from cluster.status import cluster_status
from tests.support.golden_client import golden_client
from tests.support.models import golden_cases
from tests.support.namespace import processes_here

LONG, MEDIUM = 200, 60
POLL_S = 0.2
CALL_TIMEOUT_S = 240.0
PROMPT = "The whale surfaced. " * 20
ADDRESS = "127.0.0.1:9000"


class Scenario:
    """One run. up_timeout_s, back_timeout_s: longest wait for the cluster, and for what was lost to be back."""

    up_timeout_s = 400.0
    back_timeout_s = 180.0

    def __init__(self, directory: Path, config: Path) -> None:
        self._directory = directory
        self._config = config
        # short, since sockets lie in it
        self._temporary = Path(tempfile.mkdtemp(prefix="bl-", dir="/tmp"))
        # here too, where the state is looked at
        os.environ["XDG_RUNTIME_DIR"] = str(directory / "run")
        self._environment = {
            **os.environ,
            "XDG_CACHE_HOME": str(directory / "cache"),
            "XDG_DATA_HOME": str(directory / "data"),
            "TMPDIR": str(self._temporary),
        }

    def run(self, part: str) -> dict[str, Any]:
        """Everything, in order."""
        seen: dict[str, Any] = {}
        begin = time.monotonic()
        errors = (self._directory / "up.err").open("wb")
        up = subprocess.Popen(
            self._command("up", "--config", str(self._config)),
            stdout=subprocess.PIPE,
            stderr=errors,
            env=self._environment,
            process_group=0,
        )
        try:
            assert up.stdout is not None
            readable, _, _ = select.select([up.stdout], [], [], self.up_timeout_s)
            seen["ready"] = up.stdout.readline().decode() if readable else ""
            assert seen["ready"], (self._directory / "up.err").read_text()[-3000:]
            if part == "scales":
                asyncio.run(self._scale(seen))
                up.kill()
                up.wait(10.0)
                seen["status_killed"] = self._baleen("status")
            elif part == "headless":
                asyncio.run(self._lose_head(seen))
            elif part == "nodes":
                self._use(seen)
            else:
                seen["answer"] = asyncio.run(_generate())
                seen["chat"] = _chat()
                seen["first_answer_s"] = time.monotonic() - begin
                seen["golden"] = {state: asyncio.run(_golden()) for state in ("cold", "warm")}
                seen["second_up"] = self._baleen("up", "--config", str(self._config))
                self._use(seen)
                asyncio.run(self._update(seen))
                seen["pss_mb"] = sum(map(_pss_kb, (pid for pid, _ in processes_here()))) // 1024
            seen["down"] = self._baleen("down")
            seen["up_code"] = up.wait(10.0)
        finally:
            if up.poll() is None:
                up.terminate()
                up.wait(60.0)
        seen["errors"] = (self._directory / "up.err").read_text()
        seen["processes"] = [words for _, words in processes_here()]
        places = (self._directory / "run", self._temporary)
        seen["files"] = [str(path) for place in places for path in place.rglob("*")]
        shutil.rmtree(self._temporary)
        seen["status_after"] = self._baleen("status")
        return seen

    def _use(self, seen: dict[str, Any]) -> None:
        """Look at it, kill a rank, drain a group."""
        seen["status"] = self._baleen("status")
        before = self._ranks()
        seen["ranks"] = before
        victim = next(rank for rank in before if rank["info"]["group"] == "decode/0" and rank["info"]["rank"] == 1)
        os.kill(victim["info"]["pid"], signal.SIGKILL)
        seen["after_kill"] = self._await_ranks(_replaced("decode/0", before, len(before)))
        seen["answer_after_kill"] = asyncio.run(_generate())
        seen["logs"] = self._baleen("logs", "decode/0", "--lines", "50")
        seen["drain_unknown"] = self._baleen("drain", "prefill/7")
        seen["drain"] = self._baleen("drain", "prefill/0")
        seen["after_drain"] = self._await_ranks(_replaced("prefill/0", seen["after_kill"], len(before)))
        seen["answer_after_drain"] = asyncio.run(_generate())
        server = next(
            pid for pid, words in processes_here() if "/baleen-redis-" in words and not words.startswith("/bin/sh")
        )
        os.kill(server, signal.SIGKILL)
        seen["after_redis"] = self._await_ranks(lambda ranks: len(ranks) == len(before))
        seen["answer_after_redis"] = asyncio.run(_generate())

    async def _scale(self, seen: dict[str, Any]) -> None:
        """Four requests at once until there are two groups; then one that goes on while the second group leaves."""
        seen["groups"] = [await self._await_groups(1)]
        alone = await _generate(LONG)
        ends = asyncio.Event()
        clients = [asyncio.create_task(_generate_until(ends)) for _ in range(4)]
        seen["groups"].append(await self._await_groups(2))
        seen["status"] = await asyncio.to_thread(self._baleen, "status")
        ends.set()
        answers = [answer for client in clients for answer in await client]
        # these go on while the second group is told to leave
        lasting = asyncio.Event()
        client = asyncio.create_task(_generate_until(lasting))
        seen["groups"].append(await self._await_groups(1))
        lasting.set()
        answers += await client
        seen["all_alike"] = all(answer == alone for answer in answers)
        seen["answers"] = len(answers)
        await self._replace_weights(seen)
        seen["groups"].append(await self._await_groups(1))
        seen["chat_applied"] = await asyncio.to_thread(_chat)

    async def _replace_weights(self, seen: dict[str, Any]) -> None:
        """Weights of another directory, then the first ones again in that directory, while a client asks."""
        alone = await _generate(MEDIUM)
        ends = asyncio.Event()
        client = asyncio.create_task(_generate_until(ends, MEDIUM))
        words = ("apply", "--config", str(self._config.with_name("scales_other.yaml")))
        seen["apply"] = await asyncio.to_thread(self._baleen, *words, wait_s=300.0)
        seen["ranks_applied"] = await self._ranks_now()
        other = await _generate(MEDIUM)
        for path in (self._directory / "model").glob("*.safetensors"):
            # as a new file: the old group may have the former one mapped
            shutil.copy(path, new := self._directory / "other" / "new")
            os.replace(new, new.with_name(path.name))
        seen["apply_afresh"] = await asyncio.to_thread(self._baleen, *words, "--afresh", wait_s=300.0)
        seen["ranks_afresh"] = await self._ranks_now()
        ends.set()
        answers = await client
        seen["other_differs"] = other != alone
        seen["answers_of"] = {"first": answers.count(alone), "other": answers.count(other), "all": len(answers)}
        seen["answer_afresh"] = await _generate(MEDIUM) == alone

    async def _update(self, seen: dict[str, Any]) -> None:
        """Other files while requests go on: what cannot be, then a pool changed and one more, then one fewer."""
        alone = await _generate(MEDIUM)
        before = await self._ranks_now()
        ends = asyncio.Event()
        clients = [asyncio.create_task(_generate_until(ends, MEDIUM)) for _ in range(3)]
        for name in ("moved", "damaged", "larger", "smaller"):
            config = self._config.with_name(f"{name}.yaml")
            seen[f"apply_{name}"] = await asyncio.to_thread(
                self._baleen, "apply", "--config", str(config), wait_s=300.0
            )
            seen[f"ranks_{name}"] = await self._ranks_now()
        seen["ranks_before_apply"] = before
        ends.set()
        answers = [answer for client in clients for answer in await client]
        seen["applied_alike"] = [answer == alone for answer in answers]

    async def _lose_head(self, seen: dict[str, Any]) -> None:
        """Kill Ray's head while a request runs; another one once that is known."""
        [head] = [pid for pid, words in processes_here() if words.split()[0].endswith("/gcs_server")]
        alone = await _generate(LONG)
        running = await _generate(LONG, at_first=lambda: os.kill(head, signal.SIGKILL))
        seen["running_alike"] = running == alone
        deadline = time.monotonic() + self.back_timeout_s
        while "Ray's head" not in (notice := (await self._status())["notice"]):
            assert time.monotonic() < deadline, f"not noticed: {notice}"
            await asyncio.sleep(POLL_S)
        seen["status_headless"] = await asyncio.to_thread(self._baleen, "status")
        seen["new_alike"] = await _generate(LONG) == alone

    async def _await_groups(self, count: int) -> list[str]:
        """Wait until the pool has so many groups, wants no other number, and no more have a lease."""
        deadline = time.monotonic() + self.back_timeout_s
        while True:
            status = await self._status()
            groups = sorted({rank["info"]["group"] for rank in status["ranks"]})
            if status["groups"]["all"] == [count, count] and len(groups) == count:
                return groups
            assert time.monotonic() < deadline, f"{count} groups wanted: {status}"
            await asyncio.sleep(POLL_S)

    async def _status(self) -> dict[str, Any]:
        """What `baleen status --json` prints, without a process for each look."""
        found: dict[str, Any] = json.loads(json.dumps((await cluster_status(find_running("default"))).as_dict()))
        return found

    def _ranks(self) -> list[dict[str, Any]]:
        return asyncio.run(self._ranks_now())

    async def _ranks_now(self) -> list[dict[str, Any]]:
        status = await self._status()
        # a server that was killed gives no answer for a moment
        ranks: list[dict[str, Any]] = status["ranks"] if status["redis_error"] is None else []
        return ranks

    def _await_ranks(self, good: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        deadline = time.monotonic() + self.back_timeout_s
        while not good(ranks := self._ranks()):
            said = (self._directory / "up.err").read_text()
            assert time.monotonic() < deadline, f"not back: {ranks} {said[-2000:]}"
            time.sleep(POLL_S)
        return ranks

    def _baleen(self, *words: str, wait_s: float = 120.0) -> tuple[int, str, str]:
        done = subprocess.run(
            self._command(*words), capture_output=True, text=True, env=self._environment, timeout=wait_s
        )
        return done.returncode, done.stdout, done.stderr

    @staticmethod
    def _command(*words: str) -> list[str]:
        return [sys.executable, "-m", "cluster.cli", *words]


def _replaced(group: str, before: list[dict[str, Any]], count: int) -> Callable[[list[dict[str, Any]]], bool]:
    """All ranks there and well, and those of `group` under another epoch than before."""
    old = {rank["info"]["epoch"] for rank in before if rank["info"]["group"] == group}

    def good(ranks: list[dict[str, Any]]) -> bool:
        epochs = {rank["info"]["epoch"] for rank in ranks if rank["info"]["group"] == group}
        return len(ranks) == count and not epochs & old and all(rank["error"] is None for rank in ranks)

    return good


async def _generate_until(end: asyncio.Event, num_tokens: int = LONG) -> list[dict[str, Any]]:
    """One request after the other until told to end."""
    answers = []
    while not end.is_set():
        answers.append(await _generate(num_tokens))
    return answers


def _chat() -> dict[str, Any]:
    """A whole answer of the gateway."""
    body = {"model": "deepseek-chat", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 5}
    request = urllib.request.Request(
        "http://127.0.0.1:8000/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


async def _generate(
    num_tokens: int = 12,
    *,
    at_first: Callable[[], None] = lambda: None,
    address: str = ADDRESS,
    wait_for_ready: bool = False,
) -> dict[str, Any]:
    async with open_channel(address) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        request = inference_pb2.GenerateRequest(
            text=PROMPT,
            sampling=common_pb2.SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True),
        )
        tokens: list[int] = []
        async for message in stub.Generate(request, timeout=CALL_TIMEOUT_S, wait_for_ready=wait_for_ready):
            if message.delta.token_ids and not tokens:
                at_first()
            tokens += message.delta.token_ids
    return {"tokens": tokens}


async def _golden() -> list[dict[str, int]]:
    """Every golden case, whose tokens are compared here; how each was served."""
    found = []
    async with golden_client(ADDRESS) as client:
        for case in golden_cases("dev_bf16.golden"):
            served = await client.case(case)
            served.require_golden(case)
            found.append({"prompt": len(case["prompt"]), "chosen": len(served.chosen), "cached": served.cached})
    return found


def _pss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    scenario = Scenario(Path(sys.argv[1]), Path(sys.argv[2]))
    json.dump(scenario.run("".join(sys.argv[3:])), sys.stdout)
