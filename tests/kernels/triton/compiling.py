"""Compiles every kernel for a GPU that need not be here; prints what came out, for a test to read.

Run as ``python -m tests.kernels.triton.compiling 90 [pattern of names]``, without TRITON_INTERPRET.
"""

import json
import re
import sys
from dataclasses import asdict
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.triton.configs import AttentionConfig, LinearConfig, gpu_config
from kernels.triton.jit import attention, cache, linear, rows, sampling

POINTERS = {
    "slots_ptr": "*i64",
    "positions_ptr": "*i32",
    "query_start_ptr": "*i32",
    "context_lens_ptr": "*i32",
    "block_tables_ptr": "*i32",
    "source_ids_ptr": "*i64",
    "target_ids_ptr": "*i64",
    "cos_sin_ptr": "*fp32",
    "partial_ptr": "*fp32",
    "partial_state_ptr": "*fp32",
    "scales_ptr": "*fp32",
    "scale_units_ptr": "*fp32",
    "offset_units_ptr": "*fp32",
    "best_ptr": "*fp32",
    "sum_ptr": "*fp32",
    "index_ptr": "*i32",
    "part_best_ptr": "*fp32",
    "part_sum_ptr": "*fp32",
    "part_index_ptr": "*i32",
    "log_sum_exp_ptr": "*fp32",
    "nibbles_ptr": "*u8",
    "offsets_ptr": "*i8",
}
FLOATS = {"eps", "score_scale"}
# May pass 2^31; the others are compiled as 32 bits, as small arguments are at run time.
WIDE = {"block_stride", "source_stride", "target_stride", "num_slots", "num_blocks"}
MATRIX_INSTRUCTION = re.compile(r"(wgmma\.mma_async|tcgen05\.mma|mma\.sync)[\w.]*")


def compile_kernel(
    kernel: Any, capability: int, dtype: str, constants: dict[str, Any], options: dict[str, Any]
) -> Any:
    signature, attributes = {}, {}
    pointers = POINTERS | constants.pop("pointers", {})
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = pointers.get(name, f"*{dtype}")
        else:
            signature[name] = "fp32" if name in FLOATS else "i64" if name in WIDE else "i32"
        if name.endswith(("_ptr", "_stride", "_offset", "_features")):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": False, **options})


def launch_options(cut: AttentionConfig | LinearConfig) -> dict[str, Any]:
    return {"num_warps": cut.num_warps, "num_stages": cut.num_stages}


def kernels_of(capability: int) -> Any:
    """(name, kernel, dtype, constants, options) of each kernel at a model's sizes."""
    config = gpu_config(capability, 132)
    heads = {"NUM_HEADS": 32, "NUM_KV_HEADS": 8, "HEAD_DIM": 128}
    for dtype in ("bf16", "fp32"):
        yield "rms_norm", rows.rms_norm, dtype, {"HAS_RESIDUAL": True, "COLUMNS": 4096}, {}
        yield "silu_and_mul", rows.silu_and_mul, dtype, {"COLUMNS": 1024}, {}
        stored = {"NUM_KV_HEADS": 8, "BLOCK_SIZE": 16, "HEAD_DIM": 128}
        yield "store_kv", cache.store_kv, dtype, stored | {"TOKENS": 1, "COLUMNS": 1024}, {}
        heads_of = {"NUM_HEADS": 32, "NUM_KV_HEADS": 8, "HEADS": 32, "KV_HEADS": 8, "COLUMNS": 64}
        yield "rope", cache.rope, dtype, heads_of | {"HEAD_DIM": 128}, {}
        fused = stored | heads_of | {"HAS_BIAS": True}
        yield "rope_and_store", cache.rope_and_store, dtype, fused, {}
        moved = {"HAS_SOURCE_IDS": True, "HAS_TARGET_IDS": False, "COLUMNS": 4096}
        yield "move_blocks", cache.move_blocks, dtype, moved, {}
        folded = {"HAS_SCALES": True, "IS_INTEGER": True, "COLUMNS": 1024}
        yield "fold_chunks", linear.fold_chunks, dtype, folded, {}
        yield "part_statistics", sampling.part_statistics, dtype, {"COLUMNS": 4096}, {}
        yield "fold_statistics", sampling.fold_statistics, dtype, {"PARTS": 32}, {}
        for cut in config.linear[dtype == "bf16"]:
            yield from linears_of(dtype, cut)
        for columns in (64, 128, 256):
            cut = config.attention[columns, dtype == "bf16"]
            constants = heads | {
                "HEAD_DIM": columns,
                "COLUMNS": columns,
                "BLOCK_SIZE": 16,
                "ROWS": cut.rows,
                "TILE": cut.tile,
                "SPLIT": cut.split,
            }
            name = f"paged_attention {columns}"
            yield name, attention.paged_attention, dtype, constants, launch_options(cut)
        folded = {"NUM_HEADS": 32, "HEAD_DIM": 128, "COLUMNS": 128, "SPLIT": 512}
        yield "fold_splits", attention.fold_splits, dtype, folded, {"num_warps": 1}


def linears_of(dtype: str, cut: LinearConfig) -> Any:
    sizes = asdict(cut)
    shared = {name.upper(): sizes[name] for name in ("features", "tokens", "chunk")} | {"GROUP": 8}
    dense = shared | {"DEPTH": cut.depth, "IS_EVEN": True, "HAS_SCALES": False}
    int8 = dense | {"HAS_SCALES": True, "pointers": {"weight_ptr": "*i8"}}
    int4 = shared | {"SIZE": 32, "pointers": {"scales_ptr": "*u8"}}
    size = f"{cut.tokens}x{cut.features}"
    yield f"linear {size}", linear.linear, dtype, dense, launch_options(cut)
    yield f"linear int8 {size}", linear.linear, dtype, int8, launch_options(cut)
    yield f"linear int4 {size}", linear.linear_int4, dtype, int4, launch_options(cut)


def describe(compiled: Any) -> dict[str, Any]:
    ptx = compiled.asm["ptx"]
    return {
        "cubin_bytes": len(compiled.asm["cubin"]),
        "shared_bytes": compiled.metadata.shared,
        "matrix": sorted({m.group() for m in MATRIX_INSTRUCTION.finditer(ptx)}),
        "contracted": len(re.findall(r"fma\.rn(?:\.ftz)?\.f32", ptx)),
    }


def main() -> None:
    capability, chosen = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    result = {}
    for name, kernel, dtype, constants, options in kernels_of(capability):
        if not re.search(chosen, f"{name} {dtype}"):
            continue
        compiled = compile_kernel(kernel, capability, dtype, constants, options)
        result[f"{name} {dtype}"] = describe(compiled)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
