"""Imports between the top-level folders run one way, and each heavy library has its one room."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "baleen": set(),
    "kernels": {"baleen"},
    "workers": {"baleen", "kernels"},
    "router": {"baleen"},
    "loadtest": {"baleen", "router", "workers"},
    "cluster": {"baleen", "kernels", "workers", "router", "loadtest"},
}
NO_TORCH = [
    "baleen",
    "router",
    "workers/engine/batch.py",
    "workers/engine/policy.py",
    "workers/engine/request.py",
    "workers/engine/scheduler.py",
    "workers/cache/ledger.py",
    "workers/cache/prefix.py",
]


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in a file, nested ones too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""


def sources(place: str) -> list[Path]:
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imports_of(place: str, libraries: set[str]) -> list[str]:
    """Places under `place` that import one of the libraries."""
    return [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources(place)
        for line, module in imported_modules(path)
        if module.split(".")[0] in libraries
    ]


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_run_one_way(folder):
    forbidden = set(ALLOWED) - ALLOWED[folder] - {folder}
    assert imports_of(folder, forbidden | {"tests", "benchmarks", "examples"}) == []


@pytest.mark.parametrize("folder", [folder for folder in ALLOWED if folder != "cluster"])
def test_only_cluster_imports_ray(folder):
    assert imports_of(folder, {"ray"}) == []


@pytest.mark.parametrize("place", NO_TORCH)
def test_no_torch_where_decisions_are_made(place):
    assert sources(place), f"{place} does not exist"
    assert imports_of(place, {"torch"}) == []


def test_nothing_is_unpickled():
    used = [hit for folder in ALLOWED for hit in imports_of(folder, {"pickle", "cloudpickle", "dill", "joblib"})]
    used += [
        f"{path.relative_to(ROOT)} calls torch.load"
        for folder in ALLOWED
        for path in sources(folder)
        if "torch.load(" in path.read_text(encoding="utf-8")
    ]
    assert used == []


def test_the_tokenizer_library_is_used_by_one_module():
    users = {hit.split(":")[0] for folder in ALLOWED for hit in imports_of(folder, {"tokenizers"})}
    assert users <= {"baleen/text/tokenizer.py"}
