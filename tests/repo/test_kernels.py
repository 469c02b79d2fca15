"""Every operation of the registry is whole: launcher, reference, builds, test and bench; only jit bodies go untyped."""

import ast
from pathlib import Path

import pytest

from kernels.registry import OPERATIONS

ROOT = Path(__file__).parents[2]


def functions_of(module: str) -> dict[str, ast.FunctionDef]:
    path = ROOT / f"{module.replace('.', '/')}.py"
    assert path.is_file(), f"{path} does not exist"
    return {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def is_device_code(function: ast.FunctionDef) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_is_whole(operation):
    for place in (operation.launcher, operation.reference, operation.bench):
        module, _, name = place.partition(":")
        functions = functions_of(module)
        assert name in functions, f"{operation.name}: {place} does not exist"
        assert ast.get_docstring(functions[name]), f"{place} has no docstring"
    module = operation.launcher.split(":")[0]
    assert "configs" in functions_of(module), f"{module} lists no builds"
    folder, name = module.removeprefix("kernels.").rsplit(".", 1)
    test = ROOT / "tests" / "unit" / "kernels" / folder.replace(".", "/") / f"test_{name}.py"
    assert test.is_file() and "device" in test.read_text(), f"{test} does not exist, or takes no `device`"


def test_every_launcher_is_registered():
    registered = {operation.launcher.split(":")[0] for operation in OPERATIONS}
    launchers = set()
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if "configs" in functions_of(module) and module != "kernels.registry":
            launchers.add(module)
    assert launchers == registered


def test_only_device_code_goes_without_types():
    untyped = []
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and not is_device_code(node):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                missing = [one.arg for one in arguments if one.annotation is None and one.arg not in ("self", "cls")]
                if missing or node.returns is None:
                    untyped.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {missing}")
    assert untyped == []


def test_no_kernel_uses_what_a_version_lacks_or_gets_wrong():
    banned = {
        "make_block_ptr": "removed in triton 3.9",
        "triton.autotune": "needs a GPU at import, and makes bits depend on timing",
        "libdevice": "not interpreted",
        "tl.sort": "seconds at the sizes of a row",
    }
    found = [
        f"{path.relative_to(ROOT)}: {word} ({why})"
        for path in sorted((ROOT / "kernels").rglob("*.py"))
        for word, why in banned.items()
        if word in path.read_text()
    ]
    assert found == []
