"""A running cluster is asked through a socket in its folder: progress, the end, and errors by their kind."""

import shutil
import socket
import tempfile
from pathlib import Path
from threading import Thread

import pytest

from baleen.errors import BaleenError, ConfigError
from cluster.control import Control, ask, control_path


@pytest.fixture
def directory():
    # short, since the path of a socket has at most 107 bytes
    made = Path(tempfile.mkdtemp(prefix="bc-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


def answering(control, answer):
    """A thread that takes one request and answers it; what it was is put in the list."""
    taken = []

    def serve():
        request = control.wait(10.0)
        if request is not None:
            taken.append(request.content)
            answer(request)

    thread = Thread(target=serve)
    thread.start()
    return thread, taken


def test_progress_is_heard_and_then_the_end(directory):
    def answer(request):
        request.say("starting")
        request.say("leaving")
        request.end()

    heard = []
    with Control(directory) as control:
        thread, taken = answering(control, answer)
        ask(directory, {"config": {"name": "west"}}, heard.append)
        thread.join()
    assert taken == [{"config": {"name": "west"}}] and heard == ["starting", "leaving"]


def test_an_error_keeps_its_kind(directory):
    with Control(directory) as control:
        thread, _ = answering(control, lambda request: request.end(ConfigError("router.port would change")))
        with pytest.raises(ConfigError, match=r"^router\.port would change$"):
            ask(directory, {}, print)
        thread.join()


def test_a_cluster_that_ends_first_is_told_of(directory):
    with Control(directory) as control:
        thread, _ = answering(control, lambda request: request._connection.close())
        with pytest.raises(BaleenError, match="the cluster ended before it had done this"):
            ask(directory, {}, print)
        thread.join()
    shutil.rmtree(control_path(directory), ignore_errors=True)
    with pytest.raises(BaleenError, match="the cluster cannot be asked"):
        ask(directory / "none", {}, print)


@pytest.mark.parametrize("rubbish", [b"\n", b"[1]\n", b"\xff\n", b"{", b""])
def test_rubbish_is_refused_and_harms_nothing(directory, rubbish):
    with Control(directory) as control, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(control_path(directory)))
        client.sendall(rubbish)
        client.shutdown(socket.SHUT_WR)
        assert control.wait(10.0) is None
        assert b"the request cannot be read" in client.recv(1000)


def test_whoever_does_not_wait_for_the_end_stops_nothing(directory):
    with Control(directory) as control:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(control_path(directory)))
        client.sendall(b"{}\n")
        client.close()
        request = control.wait(10.0)
        assert request is not None
        request.say("starting")
        request.say("leaving")
        request.end()
        assert control.wait(0.0) is None
