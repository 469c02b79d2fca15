"""`baleen bench kernels` where there is no GPU, and its words."""

import pytest
import torch

from cluster import cli
from kernels.registry import OPERATIONS


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "kernels"]) == 69
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("baleen: nothing was measured: torch 2.") and "no CUDA" in said.err


def test_kernels_that_are_interpreted_are_not_measured(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert cli.main(["bench", "kernels", "--op", "topk"]) == 69
    assert "TRITON_INTERPRET=1" in capsys.readouterr().err


def test_operations_are_listed_and_others_refused(capsys):
    assert cli.main(["bench", "kernels", "--list"]) == 0
    assert capsys.readouterr().out.split() == [operation.name for operation in OPERATIONS]
    assert cli.main(["bench", "kernels", "--op", "topk", "--op", "matmul"]) == 2
    assert "--op matmul: there is no such operation; there are index_logits_decode, " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["bench"], ["bench", "kernels", "--json"]])
def test_a_wrong_command_line_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2


CONFIG = "tests/data/deepseek_v32_config.json"


def test_a_layer_needs_a_gpu_too(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "layer", CONFIG]) == 69
    assert "finds no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("experts", ["8", "12", "264"])
def test_a_share_of_experts_that_the_gate_cannot_have(experts, capsys):
    assert cli.main(["bench", "layer", CONFIG, "--experts", experts]) == 2
    assert f"--experts is {experts}, must be a multiple of 8 from 16 to 256" in capsys.readouterr().err
