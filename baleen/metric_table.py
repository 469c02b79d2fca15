"""Every metric there is, once: docs/metrics.md is made of this table, and so is what routers and ranks expose.

A label has the values listed here and no others, so that the number of series is known beforehand; only gauges may have
a label whose values come from the configuration, such as the name of a pool.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal

from baleen.reports import FinishReason

PREFIX = "baleen_"

Kind = Literal["counter", "gauge", "histogram"]
Process = Literal["gateway", "router", "rank"]
Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row. name: without the prefix. series: values of the labels, in all combinations that occur; empty with
    labels: they come from the configuration. buckets: upper bounds, in the unit that the name ends in.
    """

    name: str
    processes: tuple[Process, ...]
    help: str
    kind: Kind = "counter"
    labels: Labels = ()
    series: tuple[Labels, ...] = ((),)
    buckets: tuple[float, ...] = ()


def _each(*values: str) -> tuple[Labels, ...]:
    return tuple((value,) for value in values)


def _all(*values: Iterable[str]) -> tuple[Labels, ...]:
    return tuple(product(*values))


_counter = partial(Metric, kind="counter")
_gauge = partial(Metric, kind="gauge")
_histogram = partial(Metric, kind="histogram")

_FIRST_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_GAP = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)
_LONG = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
_SHORT = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_STEP = (0.00005, 0.0002, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_ERROR = (-30.0, -10.0, -3.0, -1.0, -0.3, -0.1, -0.03, 0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

_GATEWAY: tuple[Process, ...] = ("gateway",)
_ROUTER: tuple[Process, ...] = ("router",)
_RANK: tuple[Process, ...] = ("rank",)
_BOTH: tuple[Process, ...] = ("router", "rank")

PHASES = ("queued", "reserving", "fetching", "prefilling", "decoding", "moving")
OUTCOMES = ("finished", "cancelled", "rejected", "failed")
CODES = (
    *("OK", "CANCELLED", "INVALID_ARGUMENT", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("FAILED_PRECONDITION", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL"),
)
STAGES = ("schedule", "agree", "emit", "compute", "commit")

TABLE: tuple[Metric, ...] = (
    _counter(
        "gateway_requests_total",
        _GATEWAY,
        "Requests for answers that have ended, by the class of their HTTP status; 4xx too if the client left.",
        labels=("endpoint", "status"),
        series=_all(("chat", "completions", "responses", "messages", "resume"), ("2xx", "4xx", "5xx")),
    ),
    _gauge("gateway_active_requests", _GATEWAY, "Requests for answers that have not ended."),
    _counter(
        "gateway_departures_total",
        _GATEWAY,
        "Clients that left before their answer was complete, or took nothing of it for too long.",
        labels=("reason",),
        series=_each("disconnected", "stalled"),
    ),
    _gauge("gateway_resumable_requests", _GATEWAY, "Streams that are kept for clients that may come back to them."),
    _gauge("gateway_resumable_bytes", _GATEWAY, "Memory that these streams take."),
    _counter("gateway_resumed_total", _GATEWAY, "Connections that went on with a stream."),
    _counter("gateway_routers_lost_total", _GATEWAY, "Times that a request lost its router, and was asked of another."),
    _counter(
        "gateway_ledger_entries_total",
        _GATEWAY,
        "Requests that stand in the ledger. lost: of another gateway, which died before their end; they cost nothing.",
        labels=("outcome",),
        series=_each("finished", "cancelled", "failed", "lost"),
    ),
    _counter(
        "gateway_billed_tokens_total",
        _GATEWAY,
        "Tokens of these entries, as the ledger has them; of prompts by whether a cache held them.",
        labels=("kind",),
        series=_each("prompt_hit", "prompt_miss", "completion"),
    ),
    _counter("gateway_billed_reasoning_tokens_total", _GATEWAY, "Of the completion tokens, those of thinking."),
    _counter("gateway_billed_cost_total", _GATEWAY, "Cost of these entries, in the currency of the prices."),
    _counter(
        "gateway_refused_total",
        _GATEWAY,
        "Calls that were refused for their key. origin: pages of others, where no keys are asked for.",
        labels=("reason",),
        series=_each("key", "expired", "origin", "operator", "model", "balance", "requests", "tokens", "concurrency"),
    ),
    _counter("gateway_account_failures_total", _GATEWAY, "Transactions that the file of the accounts could not do."),
    _counter(
        "requests_total",
        _ROUTER,
        "Requests that have ended. rejected: before any rank was asked. code: gRPC status of the call.",
        labels=("outcome", "code"),
        series=_all(OUTCOMES, CODES),
    ),
    _histogram(
        "request_duration_seconds",
        _ROUTER,
        "From the arrival of a request to its end.",
        labels=("outcome",),
        series=_each(*OUTCOMES),
        buckets=_LONG,
    ),
    _histogram(
        "ttft_seconds",
        _ROUTER,
        "From the arrival of a request to its first token. cache: all whole blocks of the prompt that can be "
        "shared were found computed, some, or none.",
        labels=("cache",),
        series=_each("hit", "partial", "miss"),
        buckets=_FIRST_TOKEN,
    ),
    _histogram(
        "itl_seconds",
        _ROUTER,
        "Between two tokens of a completion; tokens that come together share the time since the one before.",
        buckets=_GAP,
    ),
    _histogram(
        "tpot_seconds",
        _ROUTER,
        "Mean time for a token after the first, over all completions of a request; requests that finished and gave "
        "one of them two tokens or more.",
        buckets=_GAP,
    ),
    _histogram(
        "queue_seconds", _ROUTER, "What a request waited to be admitted, whether it was or not.", buckets=_FIRST_TOKEN
    ),
    _counter(
        "prompt_tokens_total",
        _ROUTER,
        "Prompt tokens of requests that a rank began to answer. local_cache: found on the rank that decodes; "
        "remote_cache: found on another rank and moved; computed: the others.",
        labels=("source",),
        series=_each("computed", "local_cache", "remote_cache"),
    ),
    _counter("output_tokens_total", _ROUTER, "Tokens that clients were given."),
    _gauge(
        "inflight_requests",
        _ROUTER,
        "Requests that have not ended, by what is done for them now.",
        labels=("phase",),
        series=_each(*PHASES),
    ),
    _counter(
        "cancels_total",
        _ROUTER,
        "Requests that their client gave up, by what was done for them then.",
        labels=("phase",),
        series=_each(*PHASES),
    ),
    _counter(
        "admission_decisions_total",
        _ROUTER,
        "What became of requests that asked to start: the first token would have come too late, the queue was "
        "full, or their deadline came, or no rank, while they waited.",
        labels=("decision", "reason"),
        series=(
            ("admitted", "room"),
            ("shed", "late"),
            ("shed", "queue_full"),
            ("expired", "deadline"),
            ("expired", "no_rank"),
        ),
    ),
    _histogram(
        "predicted_ttft_error_seconds",
        _ROUTER,
        "Predicted minus actual time to the first token, from when the ranks were chosen; requests that were "
        "tried once.",
        buckets=_ERROR,
    ),
    _counter(
        "route_decisions_total",
        _ROUTER,
        "Choices of ranks. alone: one rank does all; handed: a prefill rank computes for a decode rank.",
        labels=("policy", "reason"),
        series=_all(("cost", "least_loaded", "round_robin"), ("alone", "handed")),
    ),
    _histogram("route_seconds", _ROUTER, "Time that one choice took, without the lookup in Redis.", buckets=_SHORT),
    _counter(
        "route_expected_hit_tokens_total",
        _ROUTER,
        "Prompt tokens that the chosen rank was believed to hold; requests that were tried once.",
        labels=("half",),
        series=_each("prefill", "decode"),
    ),
    _counter(
        "route_actual_hit_tokens_total",
        _ROUTER,
        "Prompt tokens that it did hold. Divided by the expected ones: how true the index is.",
        labels=("half",),
        series=_each("prefill", "decode"),
    ),
    _gauge(
        "ready_workers",
        _ROUTER,
        "Ranks that can be given requests now, of each pool that was ever seen.",
        labels=("pool",),
        series=(),
    ),
    _counter(
        "retries_total",
        _ROUTER,
        "Tries after a failure. restart: before the first token; continue: after it.",
        labels=("kind",),
        series=_each("restart", "continue"),
    ),
    _counter(
        "prefix_fetches_total",
        _ROUTER,
        "Prefixes that a rank was to get from another before it computed the rest: all blocks came, some, or none.",
        labels=("outcome",),
        series=_each("complete", "partial", "failed"),
    ),
    _gauge("retry_budget_remaining", _ROUTER, "Restarts that may begin now; with less than 1 requests fail instead."),
    _counter(
        "migrations_total",
        _ROUTER,
        "Times that a request left a rank after its first token, and whether it went on elsewhere.",
        labels=("cause", "result"),
        series=_all(("lost", "full", "prefill", "refused"), ("continued", "failed")),
    ),
    _histogram(
        "migration_seconds",
        _ROUTER,
        "From the failure of a rank to the next token, where the client had tokens already.",
        buckets=_FIRST_TOKEN,
    ),
    _counter("poison_quarantined_total", _ROUTER, "Requests under which so many ranks died that they are kept out."),
    _histogram(
        "kv_index_lookup_seconds",
        _ROUTER,
        "Lookups of a prefix in Redis, those without an answer included.",
        buckets=_SHORT,
    ),
    _counter("kv_index_blind_total", _ROUTER, "Requests whose ranks were chosen without an answer of Redis."),
    _gauge("kv_index_breaker_open", _ROUTER, "1 while Redis is not asked, because it failed several times in a row."),
    _counter(
        "kv_index_errors_total",
        _BOTH,
        "Calls to Redis that failed or took too long: lookups of a router, announcements of a rank.",
    ),
    _gauge("kv_index_lease_held", _RANK, "1 while the rank holds its lease in Redis, so that routers find it."),
    _counter("kv_index_leases_lost_total", _RANK, "Times that the lease ran out or was found gone."),
    _gauge(
        "rank_requests",
        _RANK,
        "Completions that the rank has, without or with blocks.",
        labels=("state",),
        series=_each("waiting", "running"),
    ),
    _counter(
        "rank_completions_total",
        _RANK,
        "Completions and prefills that have ended on this rank.",
        labels=("finish",),
        series=_each(*(reason.value for reason in FinishReason)),
    ),
    _counter(
        "rank_prompt_tokens_total",
        _RANK,
        "Prompt tokens of completions and prefills that have started here. cached: found computed, blocks that "
        "were moved here included.",
        labels=("source",),
        series=_each("computed", "cached"),
    ),
    _counter("rank_output_tokens_total", _RANK, "Tokens that were sampled here."),
    _counter("preemptions_total", _RANK, "Times that a request lost its blocks to another and had to compute again."),
    _histogram(
        "cancel_release_seconds",
        _RANK,
        "From the arrival of an abort to when the completion holds nothing any more.",
        buckets=_STEP,
    ),
    _gauge(
        "kv_blocks",
        _RANK,
        "Cache blocks by state; together all of the rank's.",
        labels=("state",),
        series=_each("free", "held", "cached", "arriving", "lent"),
    ),
    _counter("kv_evictions_total", _RANK, "Cached blocks that were given up for others."),
    _counter(
        "kv_transfer_bytes_total",
        _RANK,
        "Bytes of cache blocks that came or went, and were verified.",
        labels=("direction",),
        series=_each("in", "out"),
    ),
    _histogram(
        "kv_transfer_seconds",
        _RANK,
        "From the first block of a transfer at hand to the end; out: while later blocks are still computed, in: "
        "from the reservation on.",
        labels=("direction",),
        series=_each("in", "out"),
        buckets=_FIRST_TOKEN,
    ),
    _counter(
        "kv_transfer_failures_total",
        _RANK,
        "Transfers that ended early.",
        labels=("direction",),
        series=_each("in", "out"),
    ),
    _counter("kv_checksum_failures_total", _RANK, "Blocks that arrived damaged and were thrown away."),
    _counter(
        "kv_fenced_writes_total",
        _RANK,
        "Transfers and blocks refused because their reservation was over, or never there.",
    ),
    _counter("kv_reservations_expired_total", _RANK, "Reservations whose time ran out before a request used them."),
    _histogram(
        "step_seconds",
        _RANK,
        "Parts of a step in which the group computes something. agree: waiting for the other ranks.",
        labels=("stage",),
        series=_each(*STAGES),
        buckets=_STEP,
    ),
    _gauge(
        "rank_info",
        _RANK,
        "1, with the place of this rank.",
        labels=("pool", "group", "rank", "role", "epoch"),
        series=(),
    ),
    _gauge("transport_info", _RANK, "1, with what moves the blocks.", labels=("backend",), series=()),
    _gauge(
        "build_info", ("gateway", "router", "rank"), "1, with the version that runs.", labels=("version",), series=()
    ),
    _histogram(
        "event_loop_lag_seconds",
        _BOTH,
        "How much later than asked the event loop wakes a sleeper, looked at twice a second.",
        buckets=_SHORT,
    ),
)

BY_NAME = {metric.name: metric for metric in TABLE}
