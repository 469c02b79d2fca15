"""A network namespace of one's own: ports that nobody else has, and no way out.

Run as `python -m tests.support.namespace MODULE ARGUMENT...` inside `unshare -n`, it brings loopback up and becomes
`python -m MODULE ARGUMENT...`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


def namespace_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in a fresh namespace."""
    return [*_unshare(), sys.executable, "-m", "tests.support.namespace", module, *arguments]


def can_have_namespaces() -> bool:
    """Whether this system lets us."""
    return shutil.which("unshare") is not None and subprocess.run([*_unshare(), "true"], check=False).returncode == 0


def _unshare() -> list[str]:
    # who is not root becomes root in a user namespace
    return ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]


def processes_here(of: int | str = "self") -> list[tuple[int, str]]:
    """Process id and command line of every process in this namespace, or in that of process `of`, but for this one."""
    own = os.readlink(f"/proc/{of}/ns/net")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            same = os.readlink(entry / "ns/net") == own
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue  # gone meanwhile, or not ours to look at
        if same and words:
            found.append((int(entry.name), words))
    return found


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | _IFF_UP))


def _main(words: Sequence[str]) -> None:
    _loopback_up()
    os.chdir(REPO)
    os.execv(sys.executable, [sys.executable, "-m", *words])


if __name__ == "__main__":
    _main(sys.argv[1:])
