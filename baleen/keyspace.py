"""Everything that is kept in Redis: key names, value formats, the scripts that change them, and their replies.

A rank that announces itself takes a lease under a tag of 4 random bytes. A tag names one life of a lease: whoever
loses a lease comes back under another, so that what was written before can be told from what is true. With the prefix
`baleen:{cluster}:` there are

    leases       sorted set   tag -> end of the lease, in milliseconds of the server's clock
    ranks        hash         tag -> incarnation, a space, RankInfo as JSON
    b<hash>      string       a block: the tags of up to 16 ranks that hold it
    held:<tag>   set          the hashes of the blocks that name the tag, for the clean-up
    serials      hash         tag -> number of the last news that its rank told

News are numbered, so that a rank whose last ones are missing, as after a restart with an old dump or a change of the
primary, learns of it and tells everything anew.

Every key has a time to live, so that nothing outlives a dead cluster, and nothing here is needed for being right.
Hashes are keyed with the tenant's salt; neither token ids nor text are stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha1
from typing import Any, cast, get_args, get_type_hints

from baleen.blocks import HASH_BYTES, BlockHash
from baleen.config import Role
from baleen.errors import BaleenError
from baleen.ids import Incarnation
from baleen.reports import RankInfo

TAG_BYTES = 4
MOST_HOLDERS = 16
"""Ranks named by one block. More may hold it; as a shared prefix forks, each is named where fewer hold the block."""

LEASE_S = 5.0
RENEW_INTERVAL_S = 1.0
KEEP_S = 600.0
"""Life of a block's entry; its holder writes it anew in half that time."""

BATCH_BLOCKS = 128
"""Most blocks in one call that announces: a quarter of a millisecond, so that Redis answers lookups in between."""

CLEAN_BLOCKS = 512
"""Most blocks that one call takes from a rank that is gone."""

COMMANDS = (
    *("eval", "evalsha", "time", "mget", "set", "del", "pexpire", "exists", "type", "sadd", "srem", "spop", "scard"),
    *("zadd", "zrem", "zscore", "zmscore", "zrangebyscore", "hset", "hget", "hdel", "hmget", "hexists"),
)
"""All that a Redis user (ACL) must be allowed, on the keys of `key_pattern`; a db other than 0 also needs `select`."""


class MalformedReply(BaleenError):
    """Redis holds or answers something that no baleen of this version writes."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and the SHA-1 by which Redis knows it."""

    source: str
    sha: str


def _script(body: str) -> Script:
    source = _LIMITS + _PRELUDE + body
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


_LIMITS = f"""
local tag_bytes, hash_bytes, entry_bytes = {TAG_BYTES}, {HASH_BYTES}, {MOST_HOLDERS * TAG_BYTES}
"""

_PRELUDE = """
local prefix = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local leases, ranks, serials = prefix .. 'leases', prefix .. 'ranks', prefix .. 'serials'

local function alive(tag)
  local ends = redis.call('ZSCORE', leases, tag)
  return ends and tonumber(ends) > now
end

local function owns(incarnation, tag)
  local rank = redis.call('HGET', ranks, tag)
  return rank and string.sub(rank, 1, #incarnation + 1) == incarnation .. ' ' and alive(tag)
end

-- whether a rank's news come after those that are known, or are those, if it did not hear that they had arrived
local function follow(tag, serial)
  local known = tonumber(redis.call('HGET', serials, tag) or '')
  if known ~= tonumber(serial) and known ~= serial - 1 then return false end
  redis.call('HSET', serials, tag, serial)
  return true
end

local function place(entry, tag)
  local at = string.find(entry, tag, 1, true)
  -- the end of one tag and the beginning of the next may look like a third
  while at and (at - 1) % tag_bytes ~= 0 do at = string.find(entry, tag, at + 1, true) end
  return at
end

-- the entries of some blocks; '' for one that nobody is named in
local function read(hashes)
  if #hashes == 0 then return {} end
  local keys = {}
  for at, hash in ipairs(hashes) do keys[at] = prefix .. 'b' .. hash end
  local entries = redis.call('MGET', unpack(keys))
  for at = 1, #hashes do entries[at] = entries[at] or '' end
  return entries
end

local function forget(hashes, tag)
  for number, entry in ipairs(read(hashes)) do
    local at = place(entry, tag)
    if at then
      local key = prefix .. 'b' .. hashes[number]
      entry = string.sub(entry, 1, at - 1) .. string.sub(entry, at + tag_bytes)
      if entry == '' then redis.call('DEL', key) else redis.call('SET', key, entry, 'KEEPTTL') end
    end
  end
end

local function split(packed)
  local hashes = {}
  for at = 1, #packed, hash_bytes do hashes[#hashes + 1] = string.sub(packed, at, at + hash_bytes - 1) end
  return hashes
end
"""

REGISTER = _script("""
local tag, old_tag, incarnation, info, lease_ms, keep_ms = unpack(ARGV)
for key, kind in pairs({[leases] = 'zset', [ranks] = 'hash', [serials] = 'hash'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
end
if redis.call('HEXISTS', ranks, tag) == 1 or redis.call('EXISTS', prefix .. 'held:' .. tag) == 1 then return 0 end
if old_tag ~= '' and redis.call('HEXISTS', ranks, old_tag) == 1 then redis.call('ZADD', leases, 0, old_tag) end
redis.call('ZADD', leases, now + lease_ms, tag)
redis.call('HSET', ranks, tag, incarnation .. ' ' .. info)
redis.call('HSET', serials, tag, 0)
for _, key in ipairs({leases, ranks, serials}) do redis.call('PEXPIRE', key, 2 * keep_ms) end
return 1
""")
"""Take a lease under a tag that nobody has, and end the one under old_tag. 0: the tag is taken, draw another.

What is of another type than baleen writes makes room: nothing could be announced beside it.
"""

RENEW = _script("""
local tag, incarnation, serial, lease_ms, keep_ms = unpack(ARGV)
if not (owns(incarnation, tag) and follow(tag, serial)) then return 0 end
redis.call('ZADD', leases, now + lease_ms, tag)
for _, key in ipairs({leases, ranks, serials, prefix .. 'held:' .. tag}) do redis.call('PEXPIRE', key, 2 * keep_ms) end
return 1
""")
"""Lengthen a lease. 0: it is over, or news of its rank are missing; it can only be taken anew."""

RELEASE = _script("""
local tag, incarnation = unpack(ARGV)
if not owns(incarnation, tag) then return 0 end
redis.call('ZADD', leases, 0, tag)
return 1
""")
"""End a lease now."""

ANNOUNCE = _script("""
local tag, incarnation, serial, keep_ms, stored, removed = unpack(ARGV)
if not (owns(incarnation, tag) and follow(tag, serial)) then return 0 end
local held = prefix .. 'held:' .. tag
local gone = split(removed)
forget(gone, tag)
if #gone > 0 then redis.call('SREM', held, unpack(gone)) end
local new, told = {}, split(stored)
for number, entry in ipairs(read(told)) do
  local hash = told[number]
  local key = prefix .. 'b' .. hash
  local named = place(entry, tag)
  if not named and #entry >= entry_bytes then
    local living = {}
    for other = 1, #entry, tag_bytes do
      local name = string.sub(entry, other, other + tag_bytes - 1)
      if alive(name) then living[#living + 1] = name end
    end
    entry = table.concat(living)
  end
  if named then
    redis.call('PEXPIRE', key, keep_ms)
  elseif #entry < entry_bytes then
    redis.call('SET', key, entry .. tag, 'PX', keep_ms)
  end
  if named or #entry < entry_bytes then new[#new + 1] = hash end
end
if #new > 0 then
  redis.call('SADD', held, unpack(new))
  redis.call('PEXPIRE', held, 2 * keep_ms)
end
return 1
""")
"""Write what a rank holds and holds no more. 0, and no change: as for RENEW."""

CLEAN = _script("""
local ended = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 1)
local tag = ended[1]
if not tag then return -1 end
local held = prefix .. 'held:' .. tag
local hashes = redis.pcall('SPOP', held, ARGV[1])
if hashes.err then
  if not string.find(hashes.err, 'WRONGTYPE', 1, true) then return hashes end
  redis.call('DEL', held)
  hashes = {}
end
forget(hashes, tag)
if redis.call('SCARD', held) == 0 then
  redis.call('ZREM', leases, tag)
  redis.call('HDEL', ranks, tag)
  redis.call('HDEL', serials, tag)
end
return #hashes
""")
"""Take up to ARGV[1] blocks from a rank whose lease is over. Their number; -1: every lease is alive."""

LOOKUP = _script("""
local chain = ARGV[1]
local count = #chain / hash_bytes
if count == 0 then return {} end
local entries = {}
local function fetch(blocks)
  local hashes = {}
  for at, block in ipairs(blocks) do
    hashes[at] = string.sub(chain, (block - 1) * hash_bytes + 1, block * hash_bytes)
  end
  for at, entry in ipairs(read(hashes)) do entries[blocks[at]] = entry end
end

local function same(first, last)
  if first == last then return true end
  if #first ~= #last then return false end
  for at = 1, #first, tag_bytes do
    if not place(last, string.sub(first, at, at + tag_bytes - 1)) then return false end
  end
  return true
end

fetch({1, count})
if entries[1] == '' then return {} end
local spans = {1, count}
while #spans > 0 do
  local halves, middles = {}, {}
  for at = 1, #spans, 2 do
    local first, last = spans[at], spans[at + 1]
    if last - first > 1 and entries[first] ~= '' and not same(entries[first], entries[last]) then
      local middle = math.floor((first + last) / 2)
      middles[#middles + 1] = middle
      for _, block in ipairs({first, middle, middle, last}) do halves[#halves + 1] = block end
    end
  end
  fetch(middles)
  spans = halves
end

local depths, tags = {}, {}
for block, entry in pairs(entries) do
  for at = 1, #entry, tag_bytes do
    local tag = string.sub(entry, at, at + tag_bytes - 1)
    if not depths[tag] then tags[#tags + 1] = tag end
    if (depths[tag] or 0) < block then depths[tag] = block end
  end
end

local reply = {}
local ends, names = redis.call('ZMSCORE', leases, unpack(tags)), redis.call('HMGET', ranks, unpack(tags))
for at, tag in ipairs(tags) do
  if ends[at] and names[at] and tonumber(ends[at]) > now then
    reply[#reply + 1] = string.match(names[at], '^%S+')
    reply[#reply + 1] = depths[tag]
  end
end
return reply
""")
"""For every living holder of a prefix of the chain ARGV[1] of hashes: incarnation, number of leading blocks.

Whoever holds a block holds those before it, so where two blocks name the same ranks, those between do too. Halving
whatever lies between two that differ finds each holder's last block: a few keys for each holder, and not one for each
block, and one MGET for each round of halving.
"""

MEMBERS = _script("""
local tags = redis.call('ZRANGEBYSCORE', leases, '(' .. now, '+inf')
if #tags == 0 then return {} end
return redis.call('HMGET', ranks, unpack(tags))
""")
"""Incarnation and RankInfo of every rank whose lease is alive."""


def key_prefix(cluster: str) -> bytes:
    """KEYS[1] of every script. The braces keep all keys of a cluster in one slot of a Redis cluster."""
    return b"baleen:{%s}:" % cluster.encode()


def key_pattern(cluster: str) -> str:
    """Every key of a cluster, as an ACL names them."""
    return f"{key_prefix(cluster).decode()}*"


def pack_hashes(hashes: Iterable[BlockHash]) -> bytes:
    """Hashes as a script takes them: one argument, 16 bytes each."""
    return b"".join(hashes)


def encode_info(info: RankInfo) -> bytes:
    """RankInfo as it stands in a lease."""
    return json.dumps(asdict(info), separators=(",", ":")).encode()


def decode_members(reply: object) -> dict[Incarnation, RankInfo]:
    """The reply of MEMBERS. Raises MalformedReply if it is no list.

    A lease that does not describe its rank is passed over, and so are fields that a newer version added.
    """
    members: dict[Incarnation, RankInfo] = {}
    for entry in _items(reply):
        if entry is None:
            continue
        incarnation, _, text = bytes(entry).partition(b" ")
        info = _decode_info(text)
        if info is not None and info.incarnation.encode() == incarnation:
            members[info.incarnation] = info
    return members


def decode_prefixes(reply: object) -> dict[Incarnation, int]:
    """The reply of LOOKUP: leading blocks of the chain that each living rank holds. Raises MalformedReply."""
    items = _items(reply)
    if len(items) % 2:
        raise MalformedReply(f"a lookup answered {len(items)} values, must be pairs")
    # a name that is no text is that of no rank
    return {
        Incarnation(bytes(name).decode(errors="replace")): int(depth)
        for name, depth in zip(items[::2], items[1::2], strict=True)
    }


def _items(reply: object) -> Sequence[Any]:
    if not isinstance(reply, list):
        raise MalformedReply(f"Redis answered {type(reply).__name__}, must be a list")
    return cast(Sequence[Any], reply)


_FIELDS = get_type_hints(RankInfo)


def _decode_info(text: bytes) -> RankInfo | None:
    """A rank's description of itself, or None if that is none."""
    try:
        stored: Mapping[str, Any] = json.loads(text)
        known = {name: value for name, value in stored.items() if name in _FIELDS}
        known["eos_token_ids"] = tuple(known["eos_token_ids"])
        info = RankInfo(**known)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    numbers = [*info.eos_token_ids, *(getattr(info, name) for name, kind in _FIELDS.items() if kind is int)]
    others = [getattr(info, name) for name, kind in _FIELDS.items() if kind is not int and name != "eos_token_ids"]
    sound = all(type(number) is int and number >= 0 for number in numbers) and all(type(text) is str for text in others)
    return info if sound and info.role in get_args(Role) else None
