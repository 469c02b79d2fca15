"""Files stay small enough to read; prose keeps to plain characters."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ["baleen", "benchmarks", "cluster", "kernels", "loadtest", "router", "tests", "workers"]
MOST_LINES = 400


def python_files() -> list[Path]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 50
    return [path for path in files if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))]


def test_no_file_is_longer_than_the_limit():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files()}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_every_module_says_what_it_owns():
    silent = [str(path.relative_to(ROOT)) for path in python_files() if not path.read_text().lstrip().startswith('"""')]
    assert silent == []


def test_no_unfinished_work_is_left_in_the_sources():
    # spelled apart, so that this file does not find itself
    marks = ["TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error"]
    found = [
        f"{path.relative_to(ROOT)}: {mark}" for path in python_files() for mark in marks if mark in path.read_text()
    ]
    assert found == []
