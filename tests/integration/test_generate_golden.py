"""The golden tokens through the command itself."""

import json
import subprocess
import sys

import pytest

from tests.support.models import golden_cases, make_golden_checkpoint

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("tiny_v32_golden", ["--ep", "4"]),
        ("dev_bf16.golden", ["--ep", "2", "--max-chunk-tokens", "64"]),
        ("dev_fp8.golden", ["--num-blocks", "8", "--attention", "absorbed"]),
    ],
)
def test_a_batch_of_prompts_gives_the_golden_tokens(name, flags, tmp_path):
    directory = make_golden_checkpoint(name, tmp_path / "model")
    by_length: dict[int, list] = {}
    for case in golden_cases(name):
        by_length.setdefault(len(case["greedy"]), []).append(case)
    for count, cases in by_length.items():
        prompts = tmp_path / f"prompts-{count}.json"
        prompts.write_text(json.dumps([case["prompt"] for case in cases]))
        ends = ["--ignore-eos"] if cases[0]["ignore_eos"] else ["--min-tokens", str(count)]
        command = ["generate", "--model", directory, "--prompt-ids", prompts, "--max-tokens", str(count), "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "cluster.cli", *map(str, command), "--logprobs", "1", *ends, *flags],
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert [answer["token_ids"] for answer in answers] == [case["greedy"] for case in cases]
        for case, answer in zip(cases, answers, strict=True):
            assert (answer["finish_reason"], answer["prompt_tokens"]) == ("length", len(case["prompt"]))
            if "greedy_logprobs" in case:
                logprobs = [entry["logprob"] for entry in answer["logprobs"]]
                assert logprobs == pytest.approx(case["greedy_logprobs"], abs=1e-3)
                assert all(len(entry["top"]) == 1 for entry in answer["logprobs"])
