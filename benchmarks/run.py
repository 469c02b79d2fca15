"""Run every measurement and print one JSON object; what `make bench` does. Takes about fifteen minutes.

usage: python -m benchmarks.run [--only NAME ...]

Each measurement is a process of its own, so that none sees the threads or the memory of another. A dated page in this
folder quotes the figures of one such run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MEASUREMENTS = (
    "against_transformers",
    "engine_overhead",
    "group_idle",
    "memory_growth",
    "index_lookup",
    "index_bounds",
    "routing",
)
TIMEOUT_S = 1800


def measure(name: str) -> Any:
    """The JSON that one measurement prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}"],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        timeout=TIMEOUT_S,
        check=True,
    )
    return json.loads(done.stdout)


def machine() -> dict[str, Any]:
    """What the figures were taken on, and how busy it was: the load average before the first measurement."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0].split(":", 1)[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=MEASUREMENTS, metavar="NAME")
    names = parser.parse_args().only
    report: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="minutes"), "machine": machine()}
    for name in names:
        report[name] = measure(name)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
