"""The command line's frame: what is imported, how errors look, which codes come out."""

import pytest

from baleen.errors import CheckpointError, EpochEnded
from cluster import cli
from cluster.commands import generate


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out.startswith("baleen ")


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


@pytest.mark.parametrize("words", [[], ["serv"], ["generate"], ["generate", "--model", "x"], ["checkpoint"]])
def test_a_wrong_command_line_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(CheckpointError("x is missing"), 3), (EpochEnded("rank 1 was killed"), 75)]
)
def test_an_error_of_ours_is_one_line_and_its_code(monkeypatch, capsys, error, code):
    def fail(args):
        raise error

    monkeypatch.setattr(generate, "run", fail)
    assert cli.main(["generate", "--model", "x", "--prompt", "y"]) == code
    assert capsys.readouterr().err == f"baleen: error: {error}\n"


def test_an_error_that_is_not_ours_is_not_hidden(monkeypatch):
    def fail(args):
        raise ZeroDivisionError

    monkeypatch.setattr(generate, "run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["generate", "--model", "x", "--prompt", "y"])


def test_a_missing_checkpoint_is_one_line(tmp_path, capsys):
    assert cli.main(["generate", "--model", str(tmp_path / "absent"), "--prompt", "y"]) == 3
    err = capsys.readouterr().err
    assert err.startswith(f"baleen: error: {tmp_path}/absent/config.json: not found") and err.count("\n") == 1
