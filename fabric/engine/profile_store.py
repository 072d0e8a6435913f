"""Finds the profile that an engine reckons with: in a file, in the cache, or by measuring."""

import contextlib
import hashlib
import json
import logging
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fabric.core.errors import ConfigError
from fabric.core.profile import Profile, ProfileSubject
from fabric.engine.device import processor_name
from fabric.engine.executor import ReadyExecutor
from fabric.engine.profiler import QUICK, ProfileDepth, measure_profile
from fabric.engine.settings import EngineSettings

logger = logging.getLogger(__name__)

# Changes when iterations come to take other times: profiles kept until then are not believed.
KEPT_VERSION = 2
POLICIES_WITHOUT_TIMES = ("fcfs", "orca", "static", "priority", "edf")


def find_profile(
    settings: EngineSettings,
    executor: ReadyExecutor,
    model: int,
    *,
    is_needed: bool = False,
    prepare: Callable[[], None] = lambda: None,
) -> Profile | None:
    """The profile that the settings name for a model; else, if anything needs one, a quick one.

    Quick profiles are kept below ``cache_dir/profiles``, so that the next start need not measure.
    To be measured, a model must be on the device.

    Args:
        settings: The engine's.
        executor: Its workers, that nobody else uses.
        model: The model's place among the executor's.
        is_needed: Whether something needs times, whatever the policy.
        prepare: Brings the model to the device; called only if it is to be measured.

    Returns:
        None if nothing needs a profile: the policy goes by no times, and no blocks are parked.

    Raises:
        ConfigError: The file that the settings name is no profile.
        GroupError: The workers can't go on.
    """
    subject = subject_of(settings, executor, model)
    named = settings.worker.models[model].profile
    if named is not None:
        return _read(named, subject)
    if not (is_needed or needs_profile(settings, executor, model)):
        return None
    name = _file_name(settings, executor, model, subject)
    path = settings.worker.cache_dir / "profiles" / name
    if path.exists():
        # A file that we can't read is measured again.
        with contextlib.suppress(ConfigError):
            return read_profile(path)
    prepare()
    profile = take_profile(settings, executor, model, QUICK)
    logger.info("a profile of %s was measured, and is kept as %s", subject.model, path)
    try:
        write_profile(profile, path)
    except OSError as error:
        logger.warning("the profile can't be kept: %s", error)
    return profile


def needs_profile(settings: EngineSettings, executor: ReadyExecutor, model: int) -> bool:
    """Whether the policy goes by times, or the model's blocks can be parked."""
    space = executor.models[model].space
    is_parked = bool(space.num_host_slots or space.num_disk_slots)
    return is_parked or settings.scheduler.policy.name not in POLICIES_WITHOUT_TIMES


def take_profile(
    settings: EngineSettings, executor: ReadyExecutor, model: int, depth: ProfileDepth
) -> Profile:
    """Measure a model on a device group that nobody else uses; note what it is and when that was.

    Raises:
        GroupError: The workers can't go on.
    """
    return replace(
        measure_profile(settings, executor, model, depth),
        subject=subject_of(settings, executor, model),
        host=platform.node(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def subject_of(settings: EngineSettings, executor: ReadyExecutor, model: int) -> ProfileSubject:
    """What a profile of these workers and this model is a profile of."""
    worker, card = settings.worker, executor.models[model].card
    return ProfileSubject(
        model=card.model,
        source=worker.models[model].source,
        dtype=card.dtype,
        device=worker.device,
        processor=processor_name(),
        num_threads=worker.num_threads or len(os.sched_getaffinity(0)),
        pipeline=settings.parallel.pipeline,
        tensor=settings.parallel.tensor,
        block_size=worker.block_size,
        max_num_seqs=settings.scheduler.max_num_seqs,
        max_num_batched_tokens=settings.scheduler.max_num_batched_tokens,
        max_model_len=card.max_model_len,
        version=_version(),
        quantization=worker.models[model].quantization,
    )


def read_profile(path: Path) -> Profile:
    """Read a profile's file.

    Raises:
        ConfigError: It can't be read or is no profile; says why.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"profile: {path} can't be read: {error}") from error
    return Profile.from_json(text, str(path))


def write_profile(profile: Profile, path: Path) -> None:
    """Write a profile's file, as a whole or not at all.

    Raises:
        OSError: It can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(profile.to_json(), encoding="utf-8")
    unfinished.replace(path)


def _read(path: Path, subject: ProfileSubject) -> Profile:
    profile = read_profile(path)
    measured = {} if profile.subject is None else asdict(profile.subject)
    present = asdict(subject)
    others = [name for name, value in measured.items() if value != present[name]]
    if others:
        logger.warning("%s was measured with another %s", path, ", ".join(others))
    return profile


def _file_name(
    settings: EngineSettings, executor: ReadyExecutor, model: int, subject: ProfileSubject
) -> str:
    """The same for all that measures the same; copies depend on where blocks are parked."""
    parking = settings.worker.parking
    known = [
        KEPT_VERSION,
        asdict(subject),
        settings.worker.models[model].quantization,
        str(parking),
        str(executor.models[model].space),
        executor.memory.max_num_blocks(model),
        settings.layer_split,
        settings.worker.backend,
        asdict(QUICK),
    ]
    digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    return f"{subject.model}-{digest}.json"


def _version() -> str:
    try:
        return version("llm-fabric")
    except PackageNotFoundError:
        return "unknown"
