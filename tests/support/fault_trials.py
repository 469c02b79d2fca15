"""One trial: requests of all kinds in flight, one fault in one phase, and everything that must hold afterwards."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from loadtest.fault_proxy import Fault, Kind
from tests.support.fault_calls import DEADLINE_S, KINDS, Call, Reference, new_calls
from tests.support.fault_cluster import FaultCluster, RedisServer
from tests.support.fault_group import Group, Rank
from tests.support.fault_phases import PHASES, Missed, Probe, let_go, prepare, reach, story_of
from tests.support.forked import ForkedProcess

WHOLE_S = 60.0
REST_S = 10.0
TRANSFER_BYTES = 492_000
"""Of a transfer of three blocks, a few less than it has."""


@dataclass
class Trial:
    """What one trial came to. Seconds; None where it does not apply. expired: reservations freed by deadline."""

    class_name: str
    phase: str
    requests: int = 0
    failed: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)
    detection_s: float | None = None
    recovery_s: float | None = None
    pause_s: float | None = None
    leaked_blocks: int = 0
    expired: float | None = None
    missed: int = 0
    seconds: float = 0.0


@dataclass
class Scene:
    """A trial under way: the fault sets fault_at, once it has taken effect."""

    cluster: FaultCluster
    calls: list[Call]
    probe: Probe
    number: int
    fault_at: float = 0.0

    @property
    def victim(self) -> Rank:
        """The rank of the probe, or in every other trial another one of its group."""
        ranks = self.probe.rank.group.ranks
        return ranks[(self.probe.rank.number + self.number) % len(ranks)]


Injection = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class FaultClass:
    """A sort of fault. side: the pool whose first group is the victim. phases: those in which it makes sense.

    ends: what of the cluster ends by it and must be replaced: a group, a router, or nothing. plans: faults of the
    transfer that happen by themselves, by the number of the trial.
    """

    name: str
    side: str
    inject: Injection
    phases: tuple[str, ...] = tuple(PHASES)
    ends: str = ""
    plans: Callable[[int], Fault] | None = None
    cancels: bool = False


async def kill_rank(scene: Scene, *, whole_group: bool = False) -> None:
    """SIGKILL."""
    victims = scene.victim.group.ranks if whole_group else [scene.victim]
    scene.fault_at = time.monotonic()
    for rank in victims:
        rank.living.send(signal.SIGKILL)
    for rank in victims:
        assert await rank.living.wait(10.0) == -signal.SIGKILL


async def stop_rank(scene: Scene) -> None:
    """SIGSTOP."""
    process = scene.victim.living
    scene.fault_at = time.monotonic()
    process.send(signal.SIGSTOP)
    await _until_stopped(process)


async def _until_stopped(process: ForkedProcess | RedisServer) -> None:
    """The system stops the threads of a process one after the other, and announces nothing."""
    async with asyncio.timeout(5.0):
        while not process.is_stopped:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def cut_rank(scene: Scene) -> None:
    """Both routers lose their connection to the rank: cut, reset, half-open or held, in turn."""
    door, way = scene.probe.rank.door, scene.number % 4
    kind: Kind = ("cut", "reset", "half_open", "hold")[way]  # type: ignore[assignment]
    before = door.counts.faults[kind]
    lost = [len(router.losses) for router in scene.cluster.routers]
    scene.fault_at = time.monotonic()
    (door.cut, door.reset, door.half_open, door.hold)[way]()
    assert door.counts.faults[kind] > before
    if kind == "hold":
        routers = scene.cluster.routers
        await scene.cluster.changes.until(
            lambda: all(len(router.losses) > count for router, count in zip(routers, lost, strict=True)),
            20.0,
            "the routers give the held connection up",
        )
        door.release()


async def await_planned(scene: Scene) -> None:
    """The proxy before the transfer port does it by itself."""
    scene.fault_at = time.monotonic()


async def kill_router(scene: Scene, *, in_order: bool = False) -> None:
    """SIGKILL of the router that the probe is on; or SIGTERM, which lets it finish what it has."""
    router = scene.probe.call.router
    process = router.living
    for call in scene.calls:
        call.may_change_router = True
    scene.fault_at = time.monotonic()
    process.send(signal.SIGTERM if in_order else signal.SIGKILL)
    if not in_order:
        assert await process.wait(10.0) == -signal.SIGKILL


async def kill_draining_router(scene: Scene) -> None:
    """SIGKILL of a router that was told to leave."""
    router = scene.probe.call.router
    for call in scene.calls:
        call.may_change_router = True
    router.living.send(signal.SIGTERM)
    await kill_router(scene)


async def fail_redis(scene: Scene, *, how: str) -> None:
    """It is killed, stopped, or restarted empty; the first two until the requests have ended."""
    redis = scene.cluster.redis
    scene.fault_at = time.monotonic()
    if how == "stop":
        redis.send(signal.SIGSTOP)
        await _until_stopped(redis)
    else:
        assert redis.kill() == 128 + signal.SIGKILL
    if how == "empty":
        await redis.start()
    # more requests while it is not there
    more = new_calls(2, scene.calls[0].request_id + "-later", scene.cluster, Reference({}, [], _stop_of(scene.calls)))
    for call in more:
        call.start(scene.cluster)
    scene.calls += more
    let_go(scene.cluster)
    await _all_ended(scene.calls)
    if how == "stop":
        redis.send(signal.SIGCONT)
    elif how == "kill":
        await redis.start()


def _stop_of(calls: list[Call]) -> str:
    return next(call.sampling["stop"][0] for call in calls if "stop" in call.sampling)


async def cancel_calls(scene: Scene) -> None:
    """Every client goes away."""
    scene.fault_at = time.monotonic()
    for call in scene.calls:
        call.cancel()


async def drain_group(scene: Scene) -> None:
    """SIGTERM to one rank: the group finishes what it has, and leaves."""
    scene.fault_at = time.monotonic()
    scene.victim.living.send(signal.SIGTERM)
    let_go(scene.cluster)
    for rank in scene.victim.group.ranks:
        assert await rank.living.wait(60.0) == 0, "a rank that drains leaves in order"


def _transfer(kind: Kind) -> Callable[[int], Fault]:
    """The faulty byte wanders over the transfer, trial by trial: its first, second, ..., last one."""

    def plan(number: int) -> Fault:
        places = [0, 1, 2, 50, 400, 500, 1000, *(TRANSFER_BYTES * step // 12 for step in range(1, 12))]
        return Fault(kind, [*places, TRANSFER_BYTES - 100, TRANSFER_BYTES][number % 20])

    return plan


_BEFORE_DRAIN = tuple(PHASES[:-1])
CLASSES = {
    fault.name: fault
    for fault in [
        FaultClass("prefill rank SIGKILL", "prefill", kill_rank, ends="group"),
        FaultClass("prefill rank SIGSTOP", "prefill", stop_rank, ends="group"),
        FaultClass("prefill rank connection cut", "prefill", cut_rank),
        FaultClass("transfer cut at byte n", "decode", await_planned, ("transferring",), plans=_transfer("cut")),
        FaultClass("transfer byte n corrupted", "decode", await_planned, ("transferring",), plans=_transfer("corrupt")),
        FaultClass("transfer held at byte n", "decode", await_planned, ("transferring",), plans=_transfer("hold")),
        FaultClass("decode rank SIGKILL", "decode", kill_rank, ends="group"),
        FaultClass("decode rank SIGSTOP", "decode", stop_rank, ends="group"),
        FaultClass("decode rank connection cut", "decode", cut_rank),
        FaultClass("prefill group SIGKILL", "prefill", partial(kill_rank, whole_group=True), ends="group"),
        FaultClass("decode group SIGKILL", "decode", partial(kill_rank, whole_group=True), ends="group"),
        FaultClass("router SIGKILL", "decode", kill_router, _BEFORE_DRAIN, ends="router"),
        FaultClass("router SIGTERM, SIGKILL", "decode", kill_draining_router, ("decoding",), ends="router"),
        FaultClass("Redis SIGKILL", "decode", partial(fail_redis, how="kill")),
        FaultClass("Redis SIGSTOP", "decode", partial(fail_redis, how="stop")),
        FaultClass("Redis restarted empty", "decode", partial(fail_redis, how="empty")),
        FaultClass("client cancel", "decode", cancel_calls, cancels=True),
        FaultClass("prefill group SIGTERM", "prefill", drain_group, _BEFORE_DRAIN, ends="group"),
        FaultClass("decode group SIGTERM", "decode", drain_group, _BEFORE_DRAIN, ends="group"),
        FaultClass("router SIGTERM", "decode", partial(kill_router, in_order=True), _BEFORE_DRAIN, ends="router"),
    ]
}


async def run_trial(
    cluster: FaultCluster, reference: Reference, fault: FaultClass, phase: str, number: int, *, most_missed: int = 10
) -> Trial:
    """A trial; from the start again when the phase was missed. Raises TimeoutError if the cluster stays broken."""
    missed = 0
    while True:
        begin = time.monotonic()
        await cluster.whole(WHOLE_S)
        await cluster.changes.until(cluster.is_at_rest, REST_S, "the ranks are at rest before the trial")
        trial = Trial(fault.name, phase, missed=missed)
        name = f"{fault.name.replace(' ', '-')}-{phase}-{number}-{missed}-{time.monotonic_ns() % 1_000_000}"
        calls = new_calls(9 if phase == "queued" else len(KINDS), name, cluster, reference)
        try:
            await _run(cluster, reference, fault, calls, trial, number)
            trial.seconds = time.monotonic() - begin
            return trial
        except Missed as error:
            missed += 1
            for call in calls:
                call.cancel()
            let_go(cluster)
            await _all_ended(calls)
            if missed >= most_missed:
                raise TimeoutError(f"{fault.name} in {phase}: missed {missed} times, at last: {error}") from error


async def _run(
    cluster: FaultCluster, reference: Reference, fault: FaultClass, calls: list[Call], trial: Trial, number: int
) -> None:
    victim = cluster.group(f"{fault.side}-0")
    # ranks that are replaced count from the start
    counts_expired = fault.cancels and trial.phase != "draining"
    expired = await cluster.num_expired() if counts_expired else 0.0
    lives = {group.name: group.lives for group in cluster.groups}
    router_lives = {router.name: router.lives for router in cluster.routers}
    losses = {router.name: len(router.losses) for router in cluster.routers}
    if fault.plans is None:
        prepare(cluster, trial.phase, fault.side)
        for call in calls:
            call.start(cluster)
        probe = await reach(cluster, trial.phase, victim, calls)
        scene = Scene(cluster, calls, probe, number)
        await fault.inject(scene)
        let_go(cluster)
    else:
        scene = await _planned(cluster, fault, calls, number)
    calls = scene.calls
    await _all_ended(calls)
    let_go(cluster)
    gone = victim if fault.ends == "group" or trial.phase == "draining" else None
    whole_at = await _replaced(cluster, fault, gone, lives, router_lives)
    # what a dead router had reserved comes back at its own deadline
    rest_at = whole_at
    try:
        rest_at = await cluster.changes.until(cluster.is_at_rest, REST_S, "the ranks are at rest")
    except TimeoutError:
        trial.leaked_blocks = sum(rank.num_missing for rank in cluster.ranks)
        trial.disturbed += [f"{rank.name} reports {rank.load}" for rank in cluster.ranks if not rank.is_at_rest]
    if counts_expired:
        trial.expired = await cluster.num_expired() - expired
    if fault.name.startswith("Redis"):
        whole_at = await cluster.leases(len(cluster.ranks), 30.0)
    trial.disturbed += [
        f"{group.name} has begun {group.lives - lives[group.name]} lives"
        for group in cluster.groups
        if group.lives != lives[group.name] + (group is gone)
    ]
    trial.disturbed += [f"{group.name} was ended by force" for group in cluster.groups if group.num_forced]
    await _judge(trial, scene, reference, fault, losses)
    lasts = rest_at if fault.plans is not None or fault.cancels else whole_at
    trial.recovery_s = lasts - scene.fault_at


async def _planned(cluster: FaultCluster, fault: FaultClass, calls: list[Call], number: int) -> Scene:
    """A fault that the transfers run into by themselves: on the first transfer to each decode rank."""
    assert fault.plans is not None
    plan = fault.plans(number)
    docks = [rank.dock for rank in cluster.ranks if rank.group.role == "decode"]
    before = sum(dock.counts.faults[plan.kind] for dock in docks)
    for dock in docks:
        dock.plan(plan)
    for call in calls:
        call.start(cluster)

    def happened() -> bool:
        return sum(dock.counts.faults[plan.kind] for dock in docks) > before or all(call.ended_at for call in calls)

    while not happened():  # noqa: ASYNC110  (counters of three proxies)
        await asyncio.sleep(0.002)
    if sum(dock.counts.faults[plan.kind] for dock in docks) == before:
        raise Missed(f"no transfer came to byte {plan.at_byte}")
    scene = Scene(cluster, calls, Probe(calls[0], cluster.group("decode-0").ranks[0]), number)
    await fault.inject(scene)
    return scene


async def _replaced(
    cluster: FaultCluster, fault: FaultClass, gone: Group | None, lives: dict[str, int], router_lives: dict[str, int]
) -> float:
    """Wait until what ended has been replaced and everything is whole; since when."""

    def back() -> bool:
        if gone is not None and gone.lives == lives[gone.name]:
            return False
        if fault.ends == "router" and all(router.lives == router_lives[router.name] for router in cluster.routers):
            return False
        return cluster.is_whole()

    try:
        return await cluster.changes.until(back, WHOLE_S, f"what {fault.name} ended is replaced")
    except TimeoutError:
        await cluster.whole(0.1)
        raise


async def _all_ended(calls: list[Call]) -> None:
    tasks = [call.task for call in calls if call.task is not None]
    if tasks:
        await asyncio.wait(tasks, timeout=DEADLINE_S + 10.0)


async def _judge(trial: Trial, scene: Scene, reference: Reference, fault: FaultClass, losses: dict[str, int]) -> None:
    """Every request ended once, in time, with the tokens of the fault-free run."""
    trial.requests = len(scene.calls)
    for call in scene.calls:
        if fault.cancels:
            story = await story_of(call)
            if call.ended_at is None or (story is not None and story.step != "ended"):
                trial.failed.append(f"{call.request_id} has not ended on the router")
        elif wrong := call.fault():
            trial.failed.append(f"{call.request_id} ({call.kind.name}) {wrong}")
        elif wrong := call.difference(reference):
            trial.differences.append(f"{call.request_id} {wrong}")
    if not fault.cancels:
        trial.pause_s = max(call.pause_after(scene.fault_at) for call in scene.calls)
    noticed = await _noticed(scene, fault, losses)
    trial.detection_s = min((max(0.0, moment - scene.fault_at) for moment in noticed), default=None)


async def _noticed(scene: Scene, fault: FaultClass, losses: dict[str, int]) -> list[float]:
    """When somebody learned of the fault: a router lost the rank, a client its router, a prefill its transfer."""
    if fault.plans is not None:
        stories = [await story_of(call) for call in scene.calls]
        return [moment for story in stories if story is not None for moment, _ in story.failures]
    if fault.ends == "router":
        return [call.lost_router_at for call in scene.calls if call.lost_router_at is not None]
    if fault.cancels or fault.name.startswith("Redis"):
        return []
    addresses = {rank.door.address for rank in scene.probe.rank.group.ranks}
    new = [loss for router in scene.cluster.routers for loss in router.losses[losses[router.name] :]]
    return [moment for moment, address in new if address in addresses]
