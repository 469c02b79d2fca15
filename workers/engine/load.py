"""How busy a rank is, as its reports tell it: the counts of its scheduler and the speed of its steps."""

from __future__ import annotations

from baleen.reports import Load
from workers.engine.scheduler import Scheduler
from workers.engine.speed import SpeedMeter


def measure_load(scheduler: Scheduler, speed: SpeedMeter, *, draining: bool) -> Load:
    """All of it, as of now; between two steps, so that the counts of blocks add up."""
    blocks, tallies = scheduler.blocks, scheduler.tallies
    return Load(
        free_blocks=blocks.num_available,
        num_waiting=scheduler.num_waiting,
        num_running=scheduler.num_running,
        queued_tokens=scheduler.num_waiting_tokens,
        running_tokens=scheduler.num_running_tokens,
        prefill_tokens_per_s=speed.prefill_tokens_per_s,
        decode_tokens_per_s=speed.decode_tokens_per_s,
        draining=draining,
        cached_blocks=blocks.num_cached,
        held_blocks=blocks.num_held,
        arriving_blocks=blocks.num_arriving,
        lent_blocks=blocks.num_lent,
        step_s=speed.step_s,
        prompt_tokens=tallies.prompt_tokens,
        cached_prompt_tokens=tallies.cached_prompt_tokens,
        output_tokens=tallies.output_tokens,
        preemptions=tallies.preemptions,
    )
