"""Gateways are killed while they write the ledger: nothing that was settled is lost, nothing is written twice."""

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from router.gateway.accounts.money import PICO
from router.gateway.accounts.records import Key
from router.gateway.accounts.sqlite_store import SqliteStore

ROOT = Path(__file__).parents[2]
LINES_UNTIL_KILL = (1, 17, 40, 95)


def gateway(path: Path, start: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.ledger_program", str(path), "k", str(start)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_gateways_leave_each_request_in_the_ledger_once(tmp_path):
    path = tmp_path / "accounts.db"
    store = SqliteStore(path)
    store.add_key(Key(key_id="k", digest=b"", tenant="t", has_balance=True), balance=PICO)
    store.close()
    opened, settled = set(), set()
    for life, num_lines in enumerate(LINES_UNTIL_KILL):
        # two at a time on one file; each is killed after some lines, wherever it is then
        processes = [gateway(path, 1_000_000 * (2 * life + side)) for side in range(2)]
        try:
            lines = [process.stdout.readline() for process in processes for _ in range(num_lines)]
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL)
        for process in processes:
            assert process.wait(timeout=60) == -signal.SIGKILL
            lines += process.stdout.readlines()  # not communicate(), which would not see what readline() had buffered
            process.stdout.close()
        for line in lines:
            if not line.endswith("\n"):  # the kill fell into the middle of a line
                continue
            word, _, number = line.partition(" ")
            (opened if word == "open" else settled).add(f"r{int(number)}")
    assert len(settled) > len(LINES_UNTIL_KILL)

    store = SqliteStore(path)
    store.recover(now_s=0.0, wall_s=1.0)
    assert store.num_open("k") == 0 and store.recover(now_s=0.0, wall_s=1.0) == 0
    left = store.balance("k")
    store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rows = connection.execute("SELECT request_id, outcome, cost FROM ledger").fetchall()
    connection.close()
    outcomes = {request_id: outcome for request_id, outcome, _ in rows}
    assert len(outcomes) == len(rows)
    # what was said to be settled is; what was opened has an entry, of no cost if its gateway died before it settled
    assert {outcomes[request_id] for request_id in settled} == {"finished"}
    assert opened <= outcomes.keys() and set(outcomes.values()) <= {"finished", "lost"}
    assert all(
        cost == (int(request_id[1:]) % 7 + 1 if outcome == "finished" else 0) for request_id, outcome, cost in rows
    )
    assert left == PICO - sum(cost for _, _, cost in rows)
