"""Clients and suites of others, each in an environment of its own under .cache/clients, run as programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).parents[2]
PROGRAMS = REPO / "tests" / "clients"
JAVASCRIPT = REPO / "examples" / "javascript"

# nothing but the gateway is to be reached
_CLOSED = "http://127.0.0.1:9"
_ENVIRONMENT = {
    "HTTP_PROXY": _CLOSED,
    "HTTPS_PROXY": _CLOSED,
    "NO_PROXY": "127.0.0.1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
    "AI_SDK_LOG_WARNINGS": "false",
    # they were not compiled when they were installed
    "PYTHONPYCACHEPREFIX": str(REPO / ".cache" / "clients" / "pycache"),
}


def clients_bin(environment: str) -> Path:
    """Where an environment has its programs; skips the test where `make clients` could not install it."""
    folder = REPO / ".cache" / "clients" / environment
    if not (folder / ".installed").exists():
        pytest.skip(f"tests/clients/{environment}.txt is not installed: make clients")
    return folder / "bin"


def node() -> str:
    """The program; skips the test where it, or what `make clients` has it install, is missing."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    if not (JAVASCRIPT / "node_modules" / ".installed").exists():
        pytest.skip(f"{JAVASCRIPT.relative_to(REPO)} is not installed: make clients")
    return program


def run(
    command: Sequence[str | Path],
    *,
    code: int | None = 0,
    stdin: str = "",
    folder: Path = REPO,
    timeout_s: float = 240.0,
    **environment: str,
) -> str:
    """What a program writes to stdout; it may reach this machine only, and must end with the code, if one is given."""
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=folder,
        env=inherited | _ENVIRONMENT | environment,
    )
    assert code is None or done.returncode == code, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def facts_of(program: str, environment: str, url: str) -> dict[str, Any]:
    """What a program of tests/clients tells about the gateway at `url`, as its last line of JSON."""
    path = PROGRAMS / program
    if path.suffix == ".mjs":
        # modules are looked for from where node runs
        output = run([node(), "--input-type=module", "-", url], stdin=path.read_text(), folder=JAVASCRIPT)
    else:
        output = run([clients_bin(environment) / "python", path, url])
    facts: dict[str, Any] = json.loads(output.splitlines()[-1])
    return facts
