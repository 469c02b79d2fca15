"""Generates baleen/v1 from proto/baleen/v1: messages, services, and types of both.

usage: python proto/generate.py [DIRECTORY]      DIRECTORY: where to put baleen/v1, instead of the repository
"""

from __future__ import annotations

import os
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "proto"
PACKAGE = Path("baleen", "v1")


def sources() -> list[Path]:
    """The .proto files, relative to SOURCES, sorted."""
    return sorted(path.relative_to(SOURCES) for path in (SOURCES / PACKAGE).glob("*.proto"))


def generate(target: Path) -> None:
    """Write the generated files under `target`, in place of those that are there. Raises RuntimeError with the code."""
    directory = target / PACKAGE
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.glob("*_pb2*.py*"):
        path.unlink()
    # the plugins that write types lie beside this interpreter, which may not be on the path
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    arguments = [
        "protoc",
        f"--proto_path={SOURCES}",
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={target}",
        f"--mypy_out={target}",
        *(str(path) for path in sources()),
    ]
    services = [str(path) for path in sources() if "\nservice " in (SOURCES / path).read_text(encoding="utf-8")]
    with_services = [*arguments[:3], f"--grpc_python_out={target}", f"--mypy_grpc_out={target}", *services]
    for command in (arguments, with_services):
        code = protoc.main(command)
        if code != 0:
            raise RuntimeError(f"protoc ended with code {code}")
    (directory / "__init__.py").write_text('"""Generated gRPC code: messages and services of proto/baleen/v1."""\n')


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
