"""Reads measured TTFT and TPOT of closed loops, in the columns that AIConfigurator publishes.

Source: NVIDIA AIConfigurator, its rows measured on silicon.
"""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from typing import Final

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from placement.catalog.shapes import shape, shape_names
from placement.cost.closed_loop import Batching, ClosedLoop
from placement.shape import ModelShape

Row = dict[str, str]

COLUMNS: Final = (
    "id",
    "backend",
    "model_path",
    "system",
    "mode",
    "isl",
    "osl",
    "gemm_quant_mode",
    "batch_size",
    "tp_size",
    "pp_size",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
)
WEIGHT_BITS: Final = {"": 16, "fp8": 8, "fp8_block": 8, "nvfp4": 4}
# How the engines put prompts into iterations unless told otherwise: TensorRT-LLM and vLLM mix
# them with running sequences, SGLang computes waiting prompts first.
BATCHING: Final[dict[str, Batching]] = {
    "trtllm": "mixed",
    "vllm": "mixed",
    "sglang": "prompts_first",
}
# TensorRT-LLM keeps KV in 8 bits for checkpoints whose matrices have 8 bits or fewer, as these
# checkpoints ask for; the others keep it in the activations' 16 unless told otherwise.
KV_BITS: Final = {"trtllm": 8}
_SUFFIXES: Final = ("-instruct", "-fp8", "-nvfp4")


@dataclass(frozen=True, slots=True)
class LoopRow:
    """One measured closed loop; ``device`` is the type's name in the catalog."""

    row_id: str
    backend: str
    shape: ModelShape
    device: str
    parallel: ParallelConfig
    loop: ClosedLoop
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class LoopRows:
    """The rows of a file that can be reckoned, and why others can't: (reason, rows)."""

    rows: tuple[LoopRow, ...]
    left_out: tuple[tuple[str, int], ...]


def read_loop_rows(text: str, origin: str = "rows") -> LoopRows:
    """Read a file of rows.

    Rows are left out, and counted, if prefill and decode had devices of their own, or the
    model's sizes or the precision aren't known.

    Args:
        text: The file, as CSV with a header.
        origin: What errors call it.

    Raises:
        ConfigError: A column is missing, or a row has no number where one is needed.
    """
    reader = csv.DictReader(io.StringIO(text))
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise ConfigError(f"{origin}: column {missing[0]} is missing")
    rows, left_out = [], Counter[str]()
    for row in reader:
        reason = _reason_to_leave_out(row)
        if reason:
            left_out[reason] += 1
            continue
        try:
            rows.append(_loop_row(row))
        except (KeyError, ValueError) as error:
            raise ConfigError(f"{origin}: row {row['id']}: {error}") from error
    return LoopRows(tuple(rows), tuple(left_out.most_common()))


def catalog_name(model_path: str) -> str:
    """What the catalog calls a model, or would call it: without owner, tuning and precision."""
    name = model_path.rsplit("/", 1)[-1].lower()
    for _ in _SUFFIXES:
        for suffix in _SUFFIXES:
            name = name.removesuffix(suffix)
    return name


def _reason_to_leave_out(row: Row) -> str:
    if row["mode"] != "agg":
        return "prefill and decode on devices of their own"
    if catalog_name(row["model_path"]) not in shape_names():
        return f"no dense model of the catalog: {row['model_path']}"
    if row["gemm_quant_mode"] not in WEIGHT_BITS:
        return f"unknown precision: {row['gemm_quant_mode']}"
    if row["backend"] not in BATCHING:
        return f"unknown engine: {row['backend']}"
    return ""


def _loop_row(row: Row) -> LoopRow:
    bits = WEIGHT_BITS[row["gemm_quant_mode"]]
    kv_bits = KV_BITS.get(row["backend"], 16) if bits <= 8 else 16
    return LoopRow(
        row_id=row["id"],
        backend=row["backend"],
        shape=shape(catalog_name(row["model_path"]), weight_bits=bits, kv_bits=kv_bits),
        device=row["system"].removesuffix("_sxm"),
        parallel=ParallelConfig(int(row["pp_size"]), int(row["tp_size"])),
        loop=ClosedLoop(
            int(row["batch_size"]), int(row["isl"]), int(row["osl"]), BATCHING[row["backend"]]
        ),
        ttft_s=float(row["silicon_ttft_ms"]) / 1e3,
        tpot_s=float(row["silicon_tpot_ms"]) / 1e3,
    )
