"""The gate that needs no GPU: every build of every launcher compiles for Hopper, and is as it was designed.

usage: python -m kernels.testing.ahead [--blackwell] [--table] [--jobs N]

For sm_90: no register spills, at most 232,448 bytes of shared memory, wgmma where the build says tensor_cores. The
first build of each kernel compiles for sm_100 too; with --blackwell every build does. Results are kept under
.cache/kernels by Triton's version and a hash of the sources, so that a second run takes no time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "kernels"
SHARED_LIMIT = 232_448
HOPPER, BLACKWELL = 90, 100


@dataclass(frozen=True)
class Compiled:
    """What one compilation gave: registers a thread, bytes of stack and shared memory, wgmma shapes in the PTX."""

    registers: int
    stack: int
    shared: int
    wgmma: tuple[str, ...]


def compile_ahead(build: Any, arch: int) -> Compiled:
    """Compile one `kernels.builds.Build` for sm_`arch`. Raises what Triton raises."""
    import triton
    from triton.backends import nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    signature = {name: "constexpr" if name in build.constants else build.types.get(name, "i32") for name in names}
    constants = {(names.index(name),): value for name, value in build.constants.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned}
    source = ASTSource(fn=build.kernel, signature=signature, constexprs=constants, attrs=attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=build.options())
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.findall(rf"{name}:(\d+)", usage)[0]) for name in ("REG", "STACK", "LOCAL"))
    wgmma = sorted(set(re.findall(r"wgmma\.mma_async\S*?\.(m64n\d+k\d+)", kernel.asm["ptx"])))
    return Compiled(registers, stack + local, kernel.metadata.shared, tuple(wgmma))


def faults(build: Any, compiled: Compiled) -> list[str]:
    """What is wrong with a build for sm_90; empty if nothing is."""
    found = []
    if compiled.stack:
        found.append(f"{compiled.stack} bytes of registers are spilled")
    if compiled.shared > SHARED_LIMIT:
        found.append(f"{compiled.shared} bytes of shared memory, the limit is {SHARED_LIMIT}")
    if build.tensor_cores and not compiled.wgmma:
        found.append("no wgmma in the PTX")
    return found


@dataclass(frozen=True)
class Task:
    """One compilation: the build at `index` in the configs of `launcher`, for sm_`arch`; `key` names its sources."""

    launcher: str
    index: int
    arch: int
    key: str


def tasks(*, blackwell: bool) -> tuple[list[Task], dict[str, Any]]:
    """Every compilation that the registry asks for, and the builds by launcher module.

    blackwell: for sm_100 too, not only the first build of each kernel.
    """
    import triton

    from kernels.registry import OPERATIONS

    found, builds, kernels = [], {}, set()
    for operation in OPERATIONS:
        module = operation.launcher.split(":")[0]
        if module in builds:
            continue
        builds[module] = operation.configs()
        assert builds[module], f"{module}.configs() lists no build"
        for index, build in enumerate(builds[module]):
            stated = (
                triton.__version__,
                build.kernel.cache_key,
                build.name,
                sorted(build.types.items()),
                build.aligned,
            )
            key = hashlib.sha256(repr((*stated, sorted(build.options().items()))).encode()).hexdigest()
            archs = [HOPPER] if build.kernel in kernels and not blackwell else [HOPPER, BLACKWELL]
            kernels.add(build.kernel)
            found += [Task(module, index, arch, f"{key}-{arch}") for arch in archs]
    return found, builds


_builds: dict[str, Any] = {}


def _run(task: Task) -> dict[str, Any]:
    """In a forked worker: what one compilation gave, or its error in one line."""
    try:
        return asdict(compile_ahead(_builds[task.launcher][task.index], task.arch))
    except Exception as error:  # whatever the compiler raises is the answer
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}


def sources_digest() -> str:
    """A hash of every file under kernels/ and of Triton's version; imports neither."""
    digest = hashlib.sha256(version("triton").encode())
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def check(folder: Path, jobs: int, *, blackwell: bool) -> list[dict[str, Any]]:
    """One row for each compilation: kernel, arch, what came out, and `faults`. Results are kept in `folder`."""
    found, builds = tasks(blackwell=blackwell)
    _builds.update(builds)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "compiled.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    missing = [task for task in found if task.key not in known]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        fresh = dict(zip((task.key for task in missing), pool.map(_run, missing), strict=True))
    results = {task.key: (known | fresh)[task.key] for task in found}
    kept.write_text(json.dumps({key: result for key, result in results.items() if "error" not in result}))
    return [_row(task, builds[task.launcher][task.index], results[task.key]) for task in found]


def _row(task: Task, build: Any, result: dict[str, Any]) -> dict[str, Any]:
    row = {"module": task.launcher, "build": build.name, "arch": task.arch, **result}
    if "error" in result:
        return row | {"faults": [result["error"]]}
    compiled = Compiled(**(result | {"wgmma": tuple(result["wgmma"])}))
    return row | {"faults": faults(build, compiled) if task.arch == HOPPER else []}


def _print(rows: list[dict[str, Any]], table: bool) -> None:
    for row in rows:
        if table and "error" not in row:
            numbers = f"{row['registers']:>4} registers {row['shared']:>7} B shared {' '.join(row['wgmma'])}"
            sys.stdout.write(f"sm_{row['arch']:<4} {numbers}  {row['build']}\n")
        for fault in row["faults"]:
            sys.stdout.write(f"FAIL sm_{row['arch']} {row['module']} {row['build']}: {fault}\n")
    wrong = sum(bool(row["faults"]) for row in rows)
    sys.stdout.write(f"kernels: {len(rows)} builds compiled ahead of time, {wrong} wrong\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the gate; 0 if every build is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blackwell", action="store_true", help="compile every build for sm_100, not one of a kernel")
    parser.add_argument("--table", action="store_true", help="print every build, not only what is wrong")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at a time (default: 2)")
    args = parser.parse_args(arguments)
    try:
        digest = sources_digest()
    except PackageNotFoundError:
        sys.stdout.write("kernels: triton is not installed on this platform, nothing is compiled\n")
        return 0
    folder = CACHE / version("triton")
    passed = folder / ("passed_blackwell.json" if args.blackwell else "passed.json")
    if passed.exists() and (last := json.loads(passed.read_text()))["digest"] == digest:
        rows = last["rows"]
    else:
        os.environ.pop("TRITON_INTERPRET", None)  # read when a kernel's module is imported
        os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE / "triton"))
        rows = check(folder, args.jobs, blackwell=args.blackwell)
        if not any(row["faults"] for row in rows):
            passed.write_text(json.dumps({"digest": digest, "rows": rows}))
    _print(rows, args.table)
    return int(any(row["faults"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
