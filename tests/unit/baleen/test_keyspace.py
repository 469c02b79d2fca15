"""The Redis key space: names, packing and the replies of its scripts."""

import json

import pytest

from baleen import keyspace
from baleen.keyspace import MalformedReply, decode_members, decode_prefixes, encode_info
from tests.support.redis_server import rank_info


def entry(info, **changes):
    stored = {**json.loads(encode_info(info)), **changes}
    return f"{info.incarnation} {json.dumps(stored)}".encode()


def test_a_description_of_a_rank_survives_the_way_through_redis():
    info = rank_info("a", role="prefill", transfer_address="127.0.0.1:2", rank=3, world_size=4)
    assert decode_members([entry(info), None]) == {"a": info}


def test_fields_of_a_newer_version_are_passed_over():
    assert decode_members([entry(rank_info("a"), invented_later=[1])]) == {"a": rank_info("a")}


@pytest.mark.parametrize(
    "lease",
    [
        b"",
        b"a",
        b"a {}",
        b"a nonsense",
        b"a 7",
        b"a []",
        b"\xff \xff",
        b"a " + b"[" * 100_000,
        entry(rank_info("a"), eos_token_ids=None),
        entry(rank_info("a"), eos_token_ids=["1"]),
        entry(rank_info("a"), vocab_size="256"),
        entry(rank_info("a"), vocab_size=-1),
        entry(rank_info("a"), num_blocks=True),
        entry(rank_info("a"), address=None),
        entry(rank_info("a"), role="king"),
        entry(rank_info("a")).replace(b"a ", b"b ", 1),
    ],
)
def test_a_lease_that_makes_no_sense_hides_no_other(lease):
    assert decode_members([lease, entry(rank_info("c"))]) == {"c": rank_info("c")}


def test_members_are_a_list():
    with pytest.raises(MalformedReply):
        decode_members(b"no list")


def test_prefixes_are_pairs():
    assert decode_prefixes([b"a", 3, b"b", 1]) == {"a": 3, "b": 1}
    assert decode_prefixes([]) == {}
    assert len(decode_prefixes([b"\xff", 3])) == 1
    for reply in (None, [b"a"]):
        with pytest.raises(MalformedReply):
            decode_prefixes(reply)


def test_clusters_have_keys_of_their_own():
    assert keyspace.key_prefix("a") == b"baleen:{a}:"


def test_scripts_are_all_different():
    scripts = [value for value in vars(keyspace).values() if isinstance(value, keyspace.Script)]
    assert len({script.sha for script in scripts}) == len(scripts) == 7
