"""How a rank joins its group: meet, connect, start the control thread, then form the process group."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from baleen.clock import Clock, SystemClock
from baleen.config import ParallelConfig
from baleen.errors import ConfigError, EpochEnded
from baleen.ids import Epoch, Incarnation, new_incarnation
from workers.parallel.control import ControlPlane
from workers.parallel.group import Group
from workers.parallel.local_group import LocalGroup
from workers.parallel.lockstep import Lockstep
from workers.parallel.membership import Membership
from workers.parallel.mesh import Member, Mesh, connect_mesh, listen
from workers.parallel.network import use_interface_of
from workers.parallel.progress import Progress
from workers.parallel.rank_group import RankGroup
from workers.parallel.rendezvous import Rendezvous


def open_group(
    config: ParallelConfig,
    on_end: Callable[[str], None],
    *,
    device: torch.device | None = None,
    clock: Clock | None = None,
    incarnation: Incarnation | None = None,
) -> Group:
    """Join the group that `config` describes, within `join_timeout_s`.

    on_end: called once with the cause, from another thread, as soon as the epoch is over; the main thread may be
    stuck in a collective then, so pass `EpochGuard.epoch_ended`. device: where experts compute, the CPU by default
    (gloo); a CUDA device uses NCCL. One group of several ranks a process, since torch.distributed is process-wide.
    Raises EpochEnded that names the missing or unreachable ranks, ConfigError.
    """
    clock = clock or SystemClock()
    incarnation = incarnation or new_incarnation()
    if config.world_size == 1:
        return LocalGroup(Epoch(config.epoch), incarnation, on_end, clock)
    use_interface_of(config.host)
    deadline = clock.now() + config.join_timeout_s
    rendezvous = Rendezvous(config, deadline=deadline, clock=clock)
    mesh, members = _connect(config, rendezvous, incarnation, deadline, clock)

    progress = Progress(clock)
    lockstep = Lockstep(mesh.step, clock)
    peers = {rank: member.incarnation for rank, member in members.items() if rank != config.rank}
    membership = Membership(peers, timeout_s=config.heartbeat_timeout_s, now=clock.now())
    control = ControlPlane(config, mesh.control, membership, progress, ended=lockstep.ended, on_end=on_end, clock=clock)
    control.start()
    _form_process_group(config, rendezvous, control, device or torch.device("cpu"))
    return RankGroup(config, incarnation, lockstep=lockstep, control=control, progress=progress, clock=clock)


def _connect(
    config: ParallelConfig, rendezvous: Rendezvous, incarnation: Incarnation, deadline: float, clock: Clock
) -> tuple[Mesh, dict[int, Member]]:
    try:
        listener = listen(config.host, config.world_size)
    except OSError as error:
        raise ConfigError(f"parallel.host is {config.host!r}: cannot listen there: {error}") from error
    with listener:
        own = Member(config.rank, config.host, listener.getsockname()[1], incarnation)
        members = rendezvous.meet(own)
        return connect_mesh(own, members, config.epoch, listener, deadline=deadline, clock=clock), members


def _form_process_group(
    config: ParallelConfig, rendezvous: Rendezvous, control: ControlPlane, device: torch.device
) -> None:
    # NCCL's own watchdog aborts the process without a word, so it gets the later deadline and ours comes first.
    on_cpu = device.type == "cpu"
    timeout_s = config.collective_timeout_s * (1 if on_cpu else 2)
    try:
        dist.init_process_group(
            "gloo" if on_cpu else "nccl",
            store=rendezvous.store,
            rank=config.rank,
            world_size=config.world_size,
            timeout=timedelta(seconds=timeout_s),
            device_id=None if on_cpu else device,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:300]
        cause = control.wait_for_cause(0.5) or f"rank {config.rank} could not form the process group: {reason}"
        raise EpochEnded(control.end(cause)) from error
