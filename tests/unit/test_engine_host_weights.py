"""Images in host memory: written once, shared, removed by whoever needs them last."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fabric.core.errors import CheckpointError, SourceError
from fabric.engine.host_weights import HostImage, HostStore, WriteAt, default_folders

CONTENT = bytes(range(256)) * 5


def never_given_up() -> None:
    pass


def writer(content: bytes = CONTENT) -> Callable[[WriteAt], None]:
    def write(write_at: WriteAt) -> None:
        write_at(700, memoryview(content)[700:])
        write_at(0, memoryview(content)[:700])

    return write


def must_not_write(_: WriteAt) -> None:
    pytest.fail("the image is there")


def fetch(
    folder: Path, name: str = "model", write: Callable[[WriteAt], None] | None = None
) -> HostImage:
    store = HostStore([folder])
    return store.fetch(name, len(CONTENT), write or writer(), never_given_up)


def content(image: HostImage) -> bytes:
    read = bytearray(image.num_bytes)
    image.read(0, memoryview(read))
    return bytes(read)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def wait_for_starts() -> None:
    for thread in threading.enumerate():
        if thread.name == "image-keeper":
            thread.join()


def test_one_writes_and_the_others_share_what_the_last_one_removes(tmp_path: Path):
    first, second = fetch(tmp_path), fetch(tmp_path, write=must_not_write)
    assert (first.was_written, second.was_written) == (True, False)
    first.close()
    third = fetch(tmp_path, write=must_not_write)
    assert content(second) == content(third) == CONTENT
    second.close()
    assert names(tmp_path) == {"model.weights"}
    third.close()
    assert names(tmp_path) == set()


def test_whoever_comes_while_it_is_written_waits_for_it(tmp_path: Path):
    waits, images = threading.Event(), []

    def write(write_at: WriteAt) -> None:
        other.start()
        assert waits.wait(10)
        writer()(write_at)

    def join() -> None:
        store = HostStore([tmp_path])
        images.append(store.fetch("model", len(CONTENT), must_not_write, waits.set))

    other = threading.Thread(target=join)
    image = fetch(tmp_path, write=write)
    other.join()
    assert content(images[0]) == CONTENT
    image.close()
    images[0].close()
    assert names(tmp_path) == set()


def test_waiting_for_another_writer_can_be_given_up(tmp_path: Path):
    def give_up() -> None:
        raise SourceError("given up")

    def write(write_at: WriteAt) -> None:
        with pytest.raises(SourceError, match="given up"):
            HostStore([tmp_path]).fetch("model", len(CONTENT), must_not_write, give_up)
        writer()(write_at)

    fetch(tmp_path, write=write).close()


def test_images_are_for_this_user_alone(tmp_path: Path):
    image = fetch(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new/model.weights").stat().st_mode & 0o777 == 0o600
    image.close()


def test_a_folder_that_others_can_use_is_refused(tmp_path: Path):
    tmp_path.chmod(0o750)
    with pytest.raises(SourceError, match="only this user"):
        fetch(tmp_path)


def test_a_failed_write_leaves_nothing_and_can_be_tried_again(tmp_path: Path):
    def fail(write_at: WriteAt) -> None:
        write_at(0, memoryview(CONTENT)[:10])
        raise CheckpointError("unreadable")

    with pytest.raises(CheckpointError, match="unreadable"):
        fetch(tmp_path, write=fail)
    assert names(tmp_path) == set()
    fetch(tmp_path).close()


def test_too_large_an_image_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(SourceError, match=f"{2**60} bytes of weights.*no room.* are free"):
        HostStore([tmp_path]).fetch("model", 2**60, must_not_write, never_given_up)
    assert names(tmp_path) == set()


def test_the_next_folder_is_taken_where_one_cannot_be_used(tmp_path: Path):
    (tmp_path / "file").write_text("")
    store = HostStore([tmp_path / "file", tmp_path / "folder"])
    image = store.fetch("model", len(CONTENT), writer(), never_given_up)
    assert names(tmp_path / "folder") == {"model.weights"}
    image.close()


def leave_as_if_killed(folder: Path) -> None:
    for left in ("unused.weights", "half.part", "half.lock", "model.part", "model.lock"):
        (folder / left).write_bytes(b"left")


def test_what_killed_processes_left_of_other_images_stays_for_their_successors(tmp_path: Path):
    leave_as_if_killed(tmp_path)
    image = fetch(tmp_path)
    assert content(image) == CONTENT
    assert names(tmp_path) == {"unused.weights", "half.part", "half.lock", "model.weights"}
    for left in names(tmp_path):
        (tmp_path / left).unlink()
    image.close()


def test_what_killed_processes_left_goes_when_there_is_no_room(tmp_path: Path):
    used = fetch(tmp_path, "used")
    leave_as_if_killed(tmp_path)
    with pytest.raises(SourceError, match="no room"):
        HostStore([tmp_path]).fetch("model", 2**60, must_not_write, never_given_up)
    assert names(tmp_path) == {"used.weights"}
    used.close()


def test_without_a_keeper_what_killed_processes_left_goes_with_the_next_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    store = HostStore([tmp_path])
    for _ in range(2):
        leave_as_if_killed(tmp_path)
        image = store.fetch("model", len(CONTENT), writer(), never_given_up)
        wait_for_starts()
        assert names(tmp_path) == {"model.weights"}
        image.close()
    assert len(caplog.messages) == 1
    assert "missing" in caplog.text


def test_a_whole_image_of_killed_processes_is_used_again(tmp_path: Path):
    (tmp_path / "model.weights").write_bytes(CONTENT)
    image = fetch(tmp_path, write=must_not_write)
    assert content(image) == CONTENT
    image.close()


def test_a_truncated_image_is_named_by_its_users_and_replaced_by_the_next(tmp_path: Path):
    image = fetch(tmp_path)
    os.truncate(tmp_path / "model.weights", 1000)
    with pytest.raises(SourceError, match=r"model\.weights has 1000 bytes instead of 1280"):
        image.check()
    with pytest.raises(SourceError, match=r"model\.weights is truncated at 1000 bytes"):
        content(image)
    whole = fetch(tmp_path)
    assert whole.was_written
    image.close()
    assert content(whole) == CONTENT
    whole.close()
    assert names(tmp_path) == set()


def test_shared_memory_comes_before_the_cache(tmp_path: Path):
    shared, cache = default_folders(tmp_path)
    assert shared.parent == Path("/dev/shm")
    assert cache.parent == tmp_path
