"""One shard against other engines: decode of one stream, prefill, a batch of 32 requests.

Run: python tests/perf/engine.py [--models llama-1b1,llama-160m,smollm2] [--quantization int8]
[--peers openvino,vllm,llamacpp,transformers --peers-dir PEERS] [--jobs decode,batch] [--json OUT].

Every subject is a process of its own with the same number of threads, and takes commands over a
pipe; those whose turn it isn't are stopped. Peers run one after the other beside our engine:
rounds of both alternate, and each figure is a median over them. Prompts are random token ids, the
same for all; EOS is ignored, nothing is cached between requests. Decode is the rate after the
first token; prefill ends with the first token; a batch counts its generated tokens. The peak is
the sum over a subject's processes of VmHWM; a start-up ends with the first token, files being in
the page cache. Limits come from memory's read bandwidth and the rate of multiply-add from
registers, as probed before each round; our decodes' shares of the bandwidth are of further rounds,
with reads of memory between their steps that meet the same moments. llama-1b1 and llama-160m have
random weights in the shapes of TinyLlama-1.1B and of a 160-million-parameter Llama.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from engine_bars import Measured
from engine_jobs import JOBS, KINDS, MAX_KV_TOKENS, MAX_LENGTH, STARTUP, chosen_jobs
from engine_measure import Bench, Record, pairings_of
from engine_models import NAMES, Model, prepare
from engine_peers import OURS, QUANTIZATIONS, Plan, launch_ours, launch_peer
from engine_report import Report, ResultOfModel
from machine import describe_machine
from peers.protocol import Task
from roofline import Ceilings, Limits, Probe

KV_SLACK_TOKENS = 1024


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", type=_names, default=["smollm2"], help=", ".join(NAMES))
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=512, help="tokens of one of our iterations")
    parser.add_argument("--peer-chunk", type=int, default=0, help="a peer's; 0: as it chooses")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=_names, default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--peers", type=_names, default=[])
    parser.add_argument("--peers-dir", type=Path, default=os.environ.get("PEERS"))
    parser.add_argument("--checkpoints", type=Path, help="where models are kept; else a new folder")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if unknown := set(options.models) - set(NAMES):
        parser.error(f"models {sorted(unknown)} are none of {', '.join(NAMES)}")
    if options.peers and options.peers_dir is None:
        parser.error("--peers needs --peers-dir or the environment's PEERS")
    return options


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def plan_of(model: Model, options: argparse.Namespace, probe: Probe) -> Plan:
    kv_tokens = MAX_KV_TOKENS + KV_SLACK_TOKENS
    task = Task(
        checkpoint=str(model.source),
        dtype=options.dtype,
        quantization=options.quantization,
        num_threads=options.threads,
        max_model_len=MAX_LENGTH,
        max_num_seqs=max(len(job.lengths) for job in JOBS),
        max_num_batched_tokens=options.chunk,
        kv_cache_bytes=kv_tokens * model.kv_token_bytes(options.dtype),
        reader=str(probe.library),
    )
    return Plan(model, task, options.peers_dir or Path(), options.peer_chunk)


def measure(model: Model, options: argparse.Namespace, probe: Probe, logs: Path) -> ResultOfModel:
    """Our engine and the peers on one model."""
    plan, jobs = plan_of(model, options, probe), chosen_jobs(options.jobs)
    launch = launch_ours(plan)
    specs = [*options.peers, *(["fabric:int8"] if options.quantization == "int4" else [])]
    peers = [launch_peer(spec, plan) for spec in specs]
    bench = Bench(model, jobs, options.rounds, logs, lambda: probe.measure(options.threads))
    ours = Record(OURS)
    if STARTUP in options.jobs:
        ours.startups_s = bench.startups(launch, options.rounds)
    records: list[Record] = []
    if peers:
        records = bench.beside(launch, ours, peers)
    else:
        bench.alone(launch, ours)
    ceilings = Ceilings.typical(bench.seen)
    weight_bytes, kv_pool_bytes = (
        int(str(ours.facts[name])) for name in ("weight_bytes", "kv_pool_bytes")
    )
    quantized = None if options.quantization == "none" else weight_bytes
    limits = Limits(ceilings, model.cost(options.dtype, quantized), options.dtype)
    measured = Measured(
        model=model.name,
        dtype=options.dtype,
        quantization=options.quantization,
        ours=ours.rounds,
        limits={job.name: job.limit(limits) for job in jobs},
        shares={job.name: ours.shares(job, limits) for job in jobs if job.name in ours.paired},
        startups_s=ours.startups_s,
        peak_bytes=ours.peak_bytes,
        weight_bytes=weight_bytes,
        kv_pool_bytes=kv_pool_bytes,
        pairings=pairings_of(ours, records, options.rounds),
    )
    return ResultOfModel(measured, ceilings, [ours, *records])


def main() -> None:
    options = parse()
    # Subjects are ended on the way out: a stopped one would stay for good.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    setting = {
        **describe_machine("torch", "transformers"),
        **{name: str(value) for name, value in vars(options).items()},
    }
    report = Report(setting)
    report.print_setting()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        in_peers = options.peers_dir / "models" if options.peers else folder
        checkpoints = options.checkpoints or in_peers
        probe = Probe(folder)
        for name in options.models:
            report.add(measure(prepare(name, checkpoints), options, probe, folder))
    report.print_bars()
    if options.json:
        report.write(options.json)


if __name__ == "__main__":
    main()
