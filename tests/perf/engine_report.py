"""Prints what the engine's benchmark has measured, and writes it down."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from engine_bars import Measured, bars_of
from engine_measure import Record
from roofline import Ceilings

MIB = 2**20


@dataclass(frozen=True)
class ResultOfModel:
    """One model's figures, and each subject's rounds, ours first."""

    measured: Measured
    ceilings: Ceilings
    records: Sequence[Record]

    def as_json(self) -> dict[str, object]:
        measured = self.measured
        return {
            "ceilings": asdict(self.ceilings),
            "limits": dict(measured.limits),
            "shares": dict(measured.shares),
            "weight_bytes": measured.weight_bytes,
            "kv_pool_bytes": measured.kv_pool_bytes,
            "subjects": {record.name: asdict(record) | _medians(record) for record in self.records},
            "ratios": {
                pairing.peer: {figure: pairing.ratio(figure) for figure in pairing.theirs}
                for pairing in measured.pairings
            },
        }


class Report:
    """The results so far."""

    def __init__(self, setting: Mapping[str, object]) -> None:
        self._setting = dict(setting)
        self._results: list[ResultOfModel] = []

    def print_setting(self) -> None:
        for name, value in self._setting.items():
            print(f"{name:24} {value}")

    def add(self, result: ResultOfModel) -> None:
        """Print a model's figures."""
        self._results.append(result)
        measured, ceilings = result.measured, result.ceilings
        print(
            f"\n{measured.model}, {measured.dtype}, quantization {measured.quantization}: "
            f"weights {measured.weight_bytes / MIB:.0f} MiB, "
            f"our KV pool {measured.kv_pool_bytes / MIB:.0f} MiB"
        )
        print(
            f"ceilings: {ceilings.read_bytes_per_s / 1e9:.1f} GB/s read ({ceilings.read_pattern}), "
            f"{ceilings.bfloat16_flop_per_s / 1e12:.3f} TFLOP/s bfloat16 "
            f"({ceilings.bfloat16_unit}), {ceilings.float32_flop_per_s / 1e12:.3f} float32"
        )
        print(f"{'tokens per second':18} {'limit':>9}  median of rounds (share of the limit)")
        for figure, limit in measured.limits.items():
            cells = [_cell(record, figure, limit) for record in result.records]
            print(f"{figure:18} {limit:9.1f}  {'  '.join(cells)}")
        for figure, shares in measured.shares.items():
            rate = median(bytes_per_s for _, bytes_per_s in result.records[0].paired[figure])
            print(
                f"{figure} with reads between steps: {median(shares):.0%} of the bandwidth "
                f"({min(shares):.0%} to {max(shares):.0%}; memory at {rate / 1e9:.1f} GB/s)"
            )
        for record in result.records:
            print(_footprint(record))

    def print_bars(self) -> None:
        print()
        for bar in self._bars():
            print(bar)

    def write(self, path: Path) -> None:
        result = {
            "setting": self._setting,
            "models": {one.measured.model: one.as_json() for one in self._results},
            "bars": self._bars(),
        }
        path.write_text(json.dumps(result, indent=2) + "\n")

    def _bars(self) -> list[str]:
        return [str(bar) for result in self._results for bar in bars_of(result.measured)]


def _medians(record: Record) -> dict[str, object]:
    return {"medians": {figure: median(rounds) for figure, rounds in record.rounds.items()}}


def _cell(record: Record, figure: str, limit: float) -> str:
    value = median(record.rounds[figure])
    return f"{record.name} {value:.1f} ({value / limit:.0%})"


def _footprint(record: Record) -> str:
    parts = [f"{record.name}: peak memory {record.peak_bytes / MIB:.0f} MiB"]
    if record.startups_s:
        parts.append(f"start-up {median(record.startups_s):.2f} s")
    if record.outside_shares:
        parts.append(f"{median(record.outside_shares):.1%} of decode outside of the executor")
    if record.other_cpus:
        others = max(cpus for rounds in record.other_cpus.values() for cpus in rounds)
        parts.append(f"at most {others} processors used by others meanwhile")
    facts = [f"{name} {value}" for name, value in record.facts.items()]
    return ", ".join(parts + facts)
