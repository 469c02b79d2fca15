"""The processes of one cluster on this machine: all inherit a mark in their environment.

Ray's helpers outlive it by a while, by a minute when it is killed. By their names they cannot be told from those of
another Ray, and some write their name over their environment, but then they have files of the cluster open.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import ExitStack, suppress
from pathlib import Path

MARK = "BALEEN_CLUSTER_DIRECTORY"


def mark_children(directory: Path) -> None:
    """Whatever this process starts from now on belongs to the cluster in `directory`."""
    os.environ[MARK] = str(directory)


def marked_processes(directory: Path) -> list[int]:
    """Ids of the living processes that belong to it, but for this one."""
    wanted = f"{MARK}={directory}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0") or _is_ray_with_files_in(entry, directory):
                found.append(int(entry.name))
        except OSError:
            continue  # another user's, or gone meanwhile
    return found


def end_marked(directory: Path, patience_s: float) -> int:
    """Wait `patience_s` for them to end by themselves, and kill those that do not; returns how many were killed."""
    left = _await_ends(marked_processes(directory), time.monotonic() + patience_s)
    for pid in left:
        with ExitStack() as stack:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, descriptor)
            # the id may be another's by now
            if pid in marked_processes(directory):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                select.select([descriptor], [], [], 1.0)
    return len(left)


def _is_ray_with_files_in(entry: Path, directory: Path) -> bool:
    if not (entry / "cmdline").read_bytes().startswith(b"ray::"):
        # whoever only reads a log of the cluster is no part of it
        return False
    for link in (entry / "fd").iterdir():
        with suppress(FileNotFoundError):
            if os.readlink(link).startswith(f"{directory}/"):
                return True
    return False


def _await_ends(pids: list[int], deadline: float) -> list[int]:
    """Those that still live at the deadline."""
    left = []
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            ended, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        finally:
            os.close(descriptor)
        if not ended:
            left.append(pid)
    return left
