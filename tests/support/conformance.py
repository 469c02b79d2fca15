"""The suites of others against a gateway: llm-comply's, and calls that schemathesis makes up from specifications.

python -m tests.support.conformance --examples 300
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.support.api_specs import write_spec
from tests.support.client_programs import clients_bin, run
from tests.support.http_gateway import Served, gateway_thread
from tests.support.scripted_talk import reply

CLAUDE = "claude-sonnet-4-5"
"""A name under which llm-comply tries thinking; under /anthropic any name will do."""

SPECS = ("openai_chat", "anthropic")
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"


@dataclass(frozen=True, slots=True)
class Generated:
    """What came of made-up calls. answers: of the endpoints that generate, by endpoint and class of status."""

    name: str
    mode: str
    cases: int
    passed: bool
    answers: dict[str, int]
    output: str


def comply(url: str, form: str, model: str) -> dict[str, str]:
    """The state of each test of llm-comply in one form of API: passed, failed or skipped."""
    command = [clients_bin("suites") / "llm-comply", "--format", form, "--model", model, "--json"]
    command += ["--base-url", f"{url}/anthropic/v1" if model == CLAUDE else f"{url}/v1", "--api-key", "none"]
    if form == "anthropic":
        command += ["--auth-header", "x-api-key", "--no-bearer", "--header", "anthropic-version:2023-06-01"]
    found = json.loads(run(command, code=None))
    return {one["id"]: one["status"] for one in found["results"]}


def generated(served: Served, name: str, mode: str, examples: int, folder: Path, *, seed: int) -> Generated:
    """Calls of a specification, so many for each operation.

    mode: positive as it says, served the same of what is served only, negative against it.
    """
    spec = folder / f"{name}.json"
    write_spec(name, spec, served=mode == "served")
    command = [clients_bin("suites") / "schemathesis", "run", spec, "--phases", "fuzzing", "--continue-on-failure"]
    command += ["--mode", "negative" if mode == "negative" else "positive"]
    command += ["--url", f"{served.url}{'/v1' if name == 'openai_chat' else '/anthropic'}", "--no-color"]
    command += ["--max-examples", str(examples), "--seed", str(seed), "--suppress-health-check", "all"]
    command += ["--checks", "not_a_server_error" if mode == "negative" else CHECKS, "--warnings", "off"]
    before = Counter(served.core.meters.requests)
    output = run(command, code=None, folder=folder, timeout_s=240.0 + 6.0 * examples)
    found = re.search(r"(\d+) generated, (\d+) passed", output)
    after = Counter(served.core.meters.requests) - before
    answers = {f"{endpoint} {status}": count for (endpoint, status), count in sorted(after.items())}
    cases, passed = (int(found[1]), found[1] == found[2]) if found else (0, False)
    return Generated(name, mode, cases, passed, answers, output)


def main() -> int:
    """Everything, as lines; the exit code says whether all of it passed."""
    parser = argparse.ArgumentParser(description="Put the suites of others to a gateway.")
    parser.add_argument("--examples", type=int, default=300, help="generated calls for each operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spec", choices=SPECS, action="append", help="make up calls of this specification only")
    options = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with gateway_thread(reply, folder) as served:
            for form in ("openai-chat", "open-responses", "anthropic"):
                for model in ("deepseek-v3.2", "deepseek-reasoner", *((CLAUDE,) if form == "anthropic" else ())):
                    states = comply(served.url, form, model)
                    others = {test: state for test, state in states.items() if state != "passed"}
                    sys.stdout.write(f"llm-comply {form} {model}: {len(states)} tests, {others or 'all passed'}\n")
            for spec in options.spec or SPECS:
                for mode in ("positive", "served", "negative"):
                    one = generated(served, spec, mode, options.examples, folder, seed=options.seed)
                    bad += not one.passed
                    verdict = "all passed" if one.passed else one.output
                    sys.stdout.write(f"schemathesis {spec} {mode}: {one.cases} cases, {verdict}; {one.answers}\n")
                    sys.stdout.flush()
    return bad


if __name__ == "__main__":
    sys.exit(main())
