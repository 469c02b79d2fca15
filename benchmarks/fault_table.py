"""What happens to requests when parts die: every class of fault in every phase, with real processes; a table.

    python -m benchmarks.fault_table [--trials 20] [--first 0] [--classes NAME ...] [--phases NAME ...]
                                     [--minutes 60] [--json FILE ...] [--page FILE]

Two prefill and two decode groups (EP 2 and EP 1 each), two routers and a Valkey, each a process of its own, without
Ray: a supervisor here replaces what has ended. In each trial requests of all kinds are in flight (greedy, seeded,
n = 2, a stop text, log-probabilities, in a form) when one fault comes in one phase. Afterwards every request must have
ended once, within its deadline, with the tokens, texts and ends of the fault-free run; every rank must report that it
holds no block for anybody; no other group may have ended; and what ended must be back.

The next trial is always one of a cell that has the fewest. The first file of --json is written now and then; trials
that stand in it count, so that a run can be continued. Other files are only read, for the table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.support.fault_calls import Reference, take_reference
from tests.support.fault_cluster import FaultCluster
from tests.support.fault_phases import PHASES
from tests.support.fault_trials import CLASSES, Trial, run_trial
from tests.support.tiny_checkpoint import make_tiny

COLUMNS = [
    "class",
    "phase",
    "trials",
    "requests",
    "failed",
    "token-identical",
    "detection s",
    "recovery s",
    "pause s",
    "leaked blocks",
    "others disturbed",
]
WRITE_S = 60.0

Cell = tuple[str, str]


class Bench:
    """A cluster that is made anew when a trial leaves it broken."""

    def __init__(self, checkpoint: Path, directory: Path) -> None:
        self._checkpoint = checkpoint
        self._directory = directory
        self._stack = AsyncExitStack()
        self._cluster: FaultCluster | None = None
        self._reference: Reference | None = None
        self._count = 0

    async def trial(self, cell: Cell, number: int) -> Trial:
        """One trial; one that breaks the cluster is a trial that failed."""
        if self._cluster is None or self._reference is None:
            self._count += 1
            directory = self._directory / str(self._count)
            directory.mkdir()
            self._cluster = await self._stack.enter_async_context(FaultCluster(self._checkpoint, directory))
            self._reference = await take_reference(self._cluster)
        try:
            return await run_trial(self._cluster, self._reference, CLASSES[cell[0]], cell[1], number)
        except (TimeoutError, RuntimeError, AssertionError) as error:
            await self.close()
            return Trial(*cell, failed=[f"the cluster did not come back: {error!r}"])

    async def close(self) -> None:
        """End everything."""
        self._cluster = None
        await self._stack.aclose()


Trials = dict[Cell, list[Trial]]


async def measure(cells: list[Cell], options: argparse.Namespace, done: Trials) -> None:
    """Add to `done` until every cell has its trials, or the time is over: always to a cell that has the fewest."""
    begin = written = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="baleen-faults-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        bench = Bench(make_tiny(directory / "checkpoint"), directory)
        try:
            while time.monotonic() < begin + 60 * options.minutes:
                cell = min(cells, key=lambda cell: len(done.get(cell, ())))
                number = len(done.get(cell, ()))
                if number >= options.trials:
                    break
                trial = await bench.trial(cell, options.first + number)
                done.setdefault(cell, []).append(trial)
                for problem in trial.failed + trial.differences + trial.disturbed:
                    sys.stderr.write(f"{cell[0]}, {cell[1]}, trial {number}: {problem[:1500]}\n")
                if options.json and time.monotonic() > written + WRITE_S:
                    await asyncio.to_thread(write, options.json[0], done)
                    written = time.monotonic()
        finally:
            await bench.close()
            if options.json:
                await asyncio.to_thread(write, options.json[0], done)


def summarise(trials: list[Trial]) -> dict[str, Any]:
    """One row, with every problem in words."""
    requests = sum(trial.requests for trial in trials)
    failed = [text for trial in trials for text in trial.failed]
    differences = [text for trial in trials for text in trial.differences]
    return {
        "class": trials[0].class_name,
        "phase": trials[0].phase,
        "trials": len(trials),
        "requests": requests,
        "failed": len(failed),
        "token-identical": requests - len(failed) - len(differences),
        "detection s": spread([trial.detection_s for trial in trials]),
        "recovery s": spread([trial.recovery_s for trial in trials]),
        "pause s": spread([trial.pause_s for trial in trials]),
        "leaked blocks": sum(trial.leaked_blocks for trial in trials),
        "others disturbed": sum(len(trial.disturbed) for trial in trials),
        "phase missed": sum(trial.missed for trial in trials),
        "problems": [text[:500] for trial in trials for text in trial.failed + trial.differences + trial.disturbed],
    }


def spread(values: list[float | None]) -> list[float] | None:
    """Median and maximum of those that are there."""
    there = [value for value in values if value is not None]
    return [round(statistics.median(there), 3), round(max(there), 3)] if there else None


def read(path: Path) -> Trials:
    """The trials of an earlier run; none if there is no such file."""
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    done: Trials = {}
    for row in rows:
        done.setdefault((row["class_name"], row["phase"]), []).append(Trial(**row))
    return done


def write(path: Path, done: Trials) -> None:
    """One trial a line, without what is empty."""
    rows = [json.dumps(_brief(asdict(trial))) for trials in done.values() for trial in trials]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")


def _brief(trial: dict[str, Any]) -> dict[str, Any]:
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in trial.items()}
    return {key: value for key, value in rounded.items() if value}


def table(done: Trials) -> tuple[str, int]:
    """All rows as Markdown, in the order of the classes and phases; and how much went wrong."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    wrong = 0
    for name, fault in CLASSES.items():
        for phase in fault.phases:
            if trials := done.get((name, phase)):
                row = summarise(trials)
                wrong += len(row["problems"]) + row["leaked blocks"]
                lines.append(f"| {' | '.join(_cell(row, column) for column in COLUMNS)} |")
    return "\n".join(lines) + "\n", wrong


def _cell(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if column == "token-identical":
        cancelled = row["class"] == "client cancel"
        return "all cancelled" if cancelled else f"{100 * value / max(1, row['requests']):.4g} %"
    if isinstance(value, list):
        return f"{value[0]:.2f} / {value[1]:.2f}"
    return "-" if value is None else str(value)


def main() -> None:
    """Measure, print the table, write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--classes", nargs="+", choices=CLASSES, default=list(CLASSES), metavar="NAME")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES, metavar="NAME")
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, for a second run")
    parser.add_argument("--minutes", type=float, default=60.0, help="no trial begins later")
    parser.add_argument("--json", type=Path, nargs="+", default=[], help="trials; those of the first file are added to")
    parser.add_argument("--page", type=Path, help="the table as Markdown")
    options = parser.parse_args()
    done: Trials = read(options.json[0]) if options.json else {}
    cells = [(name, phase) for name in options.classes for phase in CLASSES[name].phases if phase in options.phases]
    if options.trials:
        sys.stderr.write(f"{len(cells)} cells, {options.trials} trials; load average {os.getloadavg()[0]:.1f}\n")
        asyncio.run(measure(cells, options, done))
    for path in options.json[1:]:
        for cell, trials in read(path).items():
            done.setdefault(cell, []).extend(trials)
    text, wrong = table(done)
    if options.page is not None:
        options.page.write_text(text)
    sys.stdout.write(text)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
