"""What handing an iteration to shard workers costs: no model, and workers that answer at once.

Run: python tests/perf/control.py [--rounds 5] [--json OUT]. Rounds alternate over the sizes of
gangs; figures are medians over rounds of the median iteration, in microseconds. ``send`` is the
driver's encoding and sending to all workers; ``round_trip`` is until the sampling rank's answer
is with the engine. An iteration decodes a token for each of some sequences.
"""

import argparse
import json
import socket
import statistics
import time
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

from machine import describe_machine

from fabric.core.plan import ParallelConfig
from fabric.core.request import ModelCard
from fabric.core.sampling import GenerationDefaults
from fabric.engine.executor import HostedModel
from fabric.engine.gang import GangExecutor, GangSettings
from fabric.engine.settings import ModelSettings, WorkerSettings
from fabric.engine.shard_frames import Opened, Ran, Run, ShardLink
from fabric.engine.shard_worker import ShardSettings, join_driver
from fabric.kv.transfer import ParkingSpace
from fabric.parallel.mesh import Device, Mesh
from fabric.scheduler.output import SampledTokens, ScheduledSequence, SchedulerOutput, StepResult

NUM_WORKERS = (1, 2, 4)
NUM_SEQUENCES = (1, 32)
NUM_STEPS = 300
SECRET = "perf"


def answer(settings: ShardSettings) -> None:
    """Be a worker without a model; rank 0 samples."""
    with socket.create_connection(settings.driver) as connection:
        link = ShardLink(connection)
        join_driver(link, settings)
        card = ModelCard("model", "", 1, 1, "float32", "")
        model = HostedModel(card, GenerationDefaults(), 1, 1, 1, ParkingSpace())
        link.send(Opened((model,)))
        link.receive()
        while True:
            try:
                run = link.receive()
            except OSError:
                return
            assert isinstance(run, Run)
            if settings.rank == 0:
                sampled = tuple(SampledTokens(s.key, (s.key,)) for s in run.output.scheduled)
                link.send(Ran(StepResult(run.output.step, sampled), 0.0, 0, 0, 0.0))


def start_workers(num_workers: int, stack: ExitStack) -> GangExecutor:
    worker = WorkerSettings(models=(ModelSettings(model="model", source=""),), cache_dir=Path())
    gang = GangExecutor(GangSettings(worker, 1, SECRET, num_workers, 1, 0))
    parallel = ParallelConfig(tensor=num_workers)
    mesh = Mesh(parallel, tuple(Device("localhost", i) for i in range(num_workers)))
    for rank in range(num_workers):
        settings = ShardSettings(
            worker, mesh, rank, 1, SECRET, gang.address, gang.rendezvous_address
        )
        process = get_context("forkserver").Process(target=answer, args=(settings,), daemon=True)
        process.start()
        stack.callback(process.join)
    stack.callback(gang.close)
    gang.begin(lambda: False)
    return gang


def time_steps(gang: GangExecutor, num_sequences: int) -> dict[str, float]:
    """Median microseconds of an iteration, and the bytes that one worker gets."""
    scheduled = tuple(
        ScheduledSequence(key, 100, 1, 1, new_token_ids=(key,)) for key in range(num_sequences)
    )
    sends_s, trips_s = [], []
    before = gang.costs.control_bytes
    for step in range(NUM_STEPS):
        start_s = time.perf_counter()
        gang.submit(SchedulerOutput(step, scheduled))
        sends_s.append(time.perf_counter() - start_s)
        gang.collect()
        trips_s.append(time.perf_counter() - start_s)
    return {
        "send_us": statistics.median(sends_s) * 1e6,
        "round_trip_us": statistics.median(trips_s) * 1e6,
        "bytes_to_all": (gang.costs.control_bytes - before) / NUM_STEPS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    setting = {**describe_machine("msgpack"), "rounds": options.rounds, "steps": NUM_STEPS}
    rounds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        gangs = {size: start_workers(size, stack) for size in NUM_WORKERS}
        for number in range(-1, options.rounds):
            for size, gang in gangs.items():
                for num_sequences in NUM_SEQUENCES:
                    for figure, value in time_steps(gang, num_sequences).items():
                        name = f"workers_{size}_sequences_{num_sequences}_{figure}"
                        if number >= 0:
                            rounds.setdefault(name, []).append(value)
    figures = {name: statistics.median(values) for name, values in rounds.items()}
    for name, value in (setting | figures).items():
        print(f"{name:44} {value:.1f}" if isinstance(value, float) else f"{name:44} {value}")
    if options.json:
        options.json.write_text(json.dumps({"setting": setting, "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
