"""Generates the gRPC stubs into fabric/rpc/v1; run it after editing a .proto."""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(output: Path) -> None:
    """Run protoc over every .proto below protos/, into ``output``; exit on the first error."""
    sources = sorted(str(path) for path in (ROOT / "protos").rglob("*.proto"))
    well_known = files("grpc_tools") / "_proto"
    outputs = [f"--{kind}_out={output}" for kind in ("python", "pyi", "grpc_python")]
    code = protoc.main(["protoc", f"-I{ROOT / 'protos'}", f"-I{well_known}", *outputs, *sources])
    if code:
        sys.exit(f"protoc failed with exit code {code}")


if __name__ == "__main__":
    generate(ROOT)
