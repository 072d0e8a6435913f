"""A scheduler's load at one moment, as its group reports it."""

from collections.abc import Sequence
from dataclasses import dataclass

from fabric.core.request import LoadReport
from fabric.kv.transfer import Direction, Tier
from fabric.scheduler.batch_chooser import BatchChooser
from fabric.scheduler.presence import Presence
from fabric.scheduler.request_pool import RequestPool
from fabric.scheduler.swapper import Swapper


@dataclass(frozen=True, slots=True)
class Totals:
    """Iterations, tokens computed, and seconds in which nothing ran because of copies.

    ``num_superfluous_tokens`` were computed for sequences that had ended in the meantime.
    """

    num_steps: int
    num_tokens: int
    num_superfluous_tokens: int
    stall_s: float


def report_load(
    pool: RequestPool,
    swappers: Sequence[Swapper],
    choosers: Sequence[BatchChooser],
    presence: Presence,
    totals: Totals,
) -> LoadReport:
    """The load; a request with any running sequence counts as running.

    Each model's blocks count as if it had the device for itself; what models take of it together
    is told in slabs.
    """
    lanes = pool.lanes
    managers = [lane.kv for lane in lanes]
    running = {item.request.number for lane in lanes for item in lane.running}
    swapped = {item.request.number for lane in lanes for item in lane.away.values()} - running
    report = LoadReport(
        num_running=len(running),
        num_waiting=len(pool.requests) - len(running) - len(swapped),
        num_free_blocks=sum(kv.num_blocks - kv.num_used_blocks for kv in managers),
        num_blocks=sum(kv.num_blocks for kv in managers),
        num_cached_blocks=sum(kv.num_cached_blocks for kv in managers),
        num_steps=totals.num_steps,
        num_tokens=totals.num_tokens,
        num_preemptions=pool.num_preemptions,
        prefix_hit_tokens=sum(chooser.prefix_hit_tokens for chooser in choosers),
        prefix_query_tokens=sum(chooser.prefix_query_tokens for chooser in choosers),
        policy=pool.policy.name,
        num_swapped=len(swapped),
        num_host_blocks=sum(kv.num_parked_blocks(Tier.HOST) for kv in managers),
        num_disk_blocks=sum(kv.num_parked_blocks(Tier.DISK) for kv in managers),
        swapped_out_bytes=sum(swapper.bytes_moved[Direction.OUT] for swapper in swappers),
        swapped_in_bytes=sum(swapper.bytes_moved[Direction.IN] for swapper in swappers),
        num_failed_transfers=sum(swapper.num_failed for swapper in swappers),
        num_recomputed_tokens=pool.num_recomputed_tokens,
        num_superfluous_tokens=totals.num_superfluous_tokens,
        stall_s=totals.stall_s,
        models=tuple(presence.load_of(lane) for lane in lanes),
    )
    return presence.memory_of(report)
