"""Logs of other nodes: whole lines, each in the file of its name."""

from cluster.journal import Journal, SentLog


def test_what_is_sent_stands_in_the_log_of_its_name(tmp_path):
    journal = Journal(str(tmp_path))
    first, second = SentLog("all-0-0", journal.append), SentLog("router-0", journal.append)
    first.write(b"one\n")
    second.write(b"two\n")
    first.write(b"three\n")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "all-0-0.log": b"one\nthree\n",
        "router-0.log": b"two\n",
    }
