"""`baleen keys`: a key is shown once, limits are kept, and each mistake is one clear line."""

import json
import time

import pytest

from cluster import cli
from router.gateway.accounts.money import Usage
from router.gateway.accounts.records import Entry, Opening
from router.gateway.accounts.secret import digest, key_id
from router.gateway.accounts.sqlite_store import SqliteStore


@pytest.fixture
def baleen(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))

    def run(*words, code=0):
        assert cli.main(["keys", *words]) == code
        return capsys.readouterr()

    return run


def listed(baleen):
    return json.loads(baleen("list", "--json").out)


def test_a_key_is_shown_once_and_kept_as_a_hash(baleen, tmp_path):
    words = ["--models", "B,a", "--requests-per-minute", "5", "--tokens-per-minute", "6", "--concurrency", "7"]
    said = baleen("create", "--tenant", "acme", *words, "--balance", "12.5", "--expires", "90d", "--label", "for me")
    secret = said.out.strip()
    path = tmp_path / "baleen" / "default" / "accounts.db"
    held = b"".join(one.read_bytes() for one in path.parent.iterdir() if one.is_file())
    assert digest(secret) in held and secret[23:].encode() not in held
    (key,) = listed(baleen)
    created = key.pop("created_at")
    assert key.pop("expires_at") == created + 90 * 86400 and abs(created - time.time()) < 600
    assert (key["id"], key["tenant"], key["label"], key["state"]) == (key_id(secret), "acme", "for me", "good")
    assert (key["models"], key["balance"]) == (["a", "b"], "12.50")
    assert [key[name] for name in ("requests_per_minute", "tokens_per_minute", "concurrency")] == [5, 6, 7]
    table = baleen("list").out
    assert secret[23:] not in table and key_id(secret) in table and "12.50" in table


def test_a_key_ends_by_its_id_or_by_itself(baleen):
    secrets = [baleen("create", "--tenant", "t").out.strip() for _ in range(3)]
    baleen("revoke", key_id(secrets[0]))
    baleen("revoke", secrets[1])
    baleen("revoke", secrets[1])
    states = {key["id"]: key["state"] for key in listed(baleen)}
    assert [states[key_id(secret)] for secret in secrets] == ["revoked", "revoked", "good"]


def test_a_cluster_file_says_where_its_accounts_lie(baleen, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    named, placed = folder / "named.yaml", folder / "placed.yaml"
    named.write_text("name: west")
    placed.write_text("gateway: {keys: {database: money.db}}")
    baleen("create", "--tenant", "t", "--config", str(named))
    baleen("create", "--tenant", "t", "--config", str(placed))
    assert (tmp_path / "baleen" / "west" / "accounts.db").exists() and (folder / "money.db").exists()
    assert len(json.loads(baleen("list", "--json", "--name", "west").out)) == 1
    assert listed(baleen) == []


def test_a_balance_is_filled_up(baleen):
    secret = baleen("create", "--tenant", "t", "--balance", "1").out.strip()
    assert baleen("credit", key_id(secret), "0.25", "--note", "thanks").out == "balance 1.25\n"


def test_usage_is_shown_by_day(baleen, tmp_path):
    path = tmp_path / "other.db"
    store = SqliteStore(path)
    opening = Opening(request_id="r", key_id="", tenant="t", model="m", most_tokens=1, most_cost=1)
    store.open(opening, now_s=0.0, wall_s=0.0)
    entry = Entry(request_id="r", outcome="finished", usage=Usage(1, 2, 3, 4), cost=10**11)
    store.settle(entry, now_s=0.0, wall_s=time.time())
    store.close()
    (day,) = json.loads(baleen("usage", "--json", "--database", str(path)).out)
    assert (day["requests"], day["prompt_cache_hit_tokens"], day["completion_tokens"], day["cost"]) == (1, 1, 3, "0.10")
    assert baleen("usage", "--database", str(path)).out.splitlines()[1].split()[1:] == [
        "-",
        "m",
        "1",
        "1",
        "2",
        "3",
        "0.10",
    ]
    assert json.loads(baleen("usage", "--json").out) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create", "--tenant", "a b"], "tenant is 'a b', must be letters"),
        (["create", "--tenant", "t", "--balance", "0"], "--balance is 0, must be above 0, up to 1000000"),
        (["create", "--tenant", "t", "--expires", "soon"], "--expires is 'soon', must be a time like 90d"),
        (["create", "--tenant", "t", "--expires", "99999d"], "at most 36500d"),
        (["create", "--tenant", "t", "--concurrency", "0"], "concurrency is 0, must be from 1 to 1000000"),
        (["revoke", "nobody"], "there is no key 'nobody'; `baleen keys list` shows them"),
        (["credit", "nobody", "1"], "there is no key 'nobody'"),
        (["credit", "nobody", "many"], "AMOUNT is 'many', must be a decimal"),
        (["usage", "--days", "0"], "--days is 0, must be from 1 to 36500"),
        (["list", "--name", "../x"], "name is '../x', must be"),
    ],
)
def test_mistakes_are_one_line(baleen, words, said):
    line = baleen(*words, code=2).err
    assert said in line and line.startswith("baleen: error: ") and line.count("\n") == 1
