"""The build steps that pyproject.toml cannot express: gRPC stubs and C++ extensions."""

import os
import platform
import runpy
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CSRC = Path("kernels/cpu/csrc")
COMMON_SOURCES = ("batch.cpp", "bindings.cpp", "cache.cpp", "decoder.cpp", "threads.cpp")
ISA_SOURCES = ("attention.cpp", "layers.cpp", "linear.cpp", "table.cpp", "tile_linear.cpp")
ISA_SOURCES += ("quantized.cpp", "quantized_pack.cpp")
SCORES_COMMON_SOURCES = ("score_bindings.cpp", "scores.cpp", "threads.cpp")
SCORES_ISA_SOURCES = ("score_passes.cpp",)
GROUP_CSRC = Path("fabric/parallel/csrc")
GROUP_SOURCES = ("bindings.cpp", "channel.cpp", "collectives.cpp", "sums.cpp")
GROUP_HEADERS = ("channel.h", "collectives.h", "segment.h", "sums.h")
PLANNER_CSRC = Path("placement/csrc")
ISA_FLAGS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    avx512 = ("f", "bw", "vl", "dq", "bf16", "vnni")
    ISA_FLAGS["avx512"] = ["-mavx2", "-mfma", *(f"-mavx512{part}" for part in avx512)]
    ISA_FLAGS["amx"] = [*ISA_FLAGS["avx512"], "-mamx-tile", "-mamx-bf16"]
    ISA_FLAGS["amx_emulated"] = [*ISA_FLAGS["avx512"], "-DEMULATED_TILES"]

# No contraction: where a multiply and an add are fused is part of the kernels' contract.
FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden", "-ffp-contract=off"]
# GCC warns of the ABI of wide vectors (all inlined) and of its own AVX-512 headers.
FLAGS += ["-Wno-psabi", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]

# Of each extension with kernels: sources compiled once, and once for each instruction set.
KERNEL_SOURCES = {
    "kernels.cpu._kernels": (COMMON_SOURCES, ISA_SOURCES, list(ISA_FLAGS)),
    "kernels.cpu._scores": (
        SCORES_COMMON_SOURCES,
        SCORES_ISA_SOURCES,
        [isa for isa in ISA_FLAGS if "amx" not in isa],  # there is nothing to multiply
    ),
}


class BuildStubs(build_py):
    def run(self):
        runpy.run_path("protos/generate.py", run_name="__main__")
        super().run()


class BuildNative(build_ext):
    """Compiles kernels once for each instruction set; the choice is made at run time."""

    def build_extension(self, ext):
        import pybind11

        if ext.name not in KERNEL_SOURCES:
            ext.include_dirs.append(pybind11.get_include())
            return super().build_extension(ext)
        return self._build_kernels(ext, [pybind11.get_include(), *self.compiler.include_dirs])

    def _build_kernels(self, ext, include_dirs):
        common_sources, isa_sources, isas = KERNEL_SOURCES[ext.name]
        builds = [(common_sources, [], include_dirs, "common")]
        builds += [(isa_sources, [f"-DKERNEL_ISA={isa}", *ISA_FLAGS[isa]], [], isa) for isa in isas]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(chain(*pool.map(lambda build: self._compile(*build), builds)))
        target = self.get_ext_fullpath(ext.name)
        self.compiler.link_shared_object(
            objects, target, extra_postargs=["-pthread"], target_lang="c++"
        )

    def _compile(self, sources, flags, include_dirs, folder):
        return self.compiler.compile(
            [str(CSRC / source) for source in sources],
            output_dir=str(Path(self.build_temp) / folder),
            include_dirs=include_dirs,
            extra_postargs=[*FLAGS, *flags],
        )


setup(
    cmdclass={"build_py": BuildStubs, "build_ext": BuildNative},
    # Optional: a machine without a compiler can still install the client.
    ext_modules=[
        Extension(
            "kernels.cpu._kernels",
            sources=[str(CSRC / name) for name in COMMON_SOURCES + ISA_SOURCES],
            depends=[str(path) for path in sorted(CSRC.glob("*.h"))],
            optional=True,
        ),
        Extension(
            "kernels.cpu._scores",
            sources=[str(CSRC / name) for name in SCORES_COMMON_SOURCES + SCORES_ISA_SOURCES],
            depends=[str(CSRC / name) for name in ("kernels.h", "scores.h", "simd.h", "threads.h")],
            optional=True,
        ),
        Extension(
            "fabric.parallel._shm",
            sources=[str(GROUP_CSRC / name) for name in GROUP_SOURCES],
            depends=[str(GROUP_CSRC / name) for name in GROUP_HEADERS],
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        ),
        Extension(
            "placement._native",
            sources=[str(path) for path in sorted(PLANNER_CSRC.glob("*.cpp"))],
            depends=[str(path) for path in sorted(PLANNER_CSRC.glob("*.h"))],
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        ),
    ],
)
