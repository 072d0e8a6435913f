"""What the keeper of a folder of images does at given times."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fabric.engine.image_keeper import ImageKeeper, become_keeper, sweep
from fabric.engine.keeper_process import make_private

LINGER_S = 30.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    make_private(made)
    return made


def keeper_of(folder: Path) -> ImageKeeper:
    fd = become_keeper(folder)
    assert fd is not None
    return ImageKeeper(folder, fd, LINGER_S)


@contextmanager
def held(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_image_goes_after_nobody_has_held_it_for_the_time_to_linger(folder: Path):
    keeper, image = keeper_of(folder), folder / "model.weights"
    with held(image):
        assert keeper.look(0.0)
        assert keeper.look(1000.0)
    assert keeper.look(1001.0)
    assert keeper.look(1030.9)
    assert image.exists()
    assert keeper.look(1031.0)
    assert not image.exists()
    assert not keeper.look(1032.0)


def test_who_uses_an_image_again_starts_its_time_anew(folder: Path):
    keeper, image = keeper_of(folder), folder / "model.weights"
    image.touch()
    assert keeper.look(0.0)
    with held(image):
        assert keeper.look(20.0)
    assert keeper.look(21.0)
    assert keeper.look(50.9)
    assert image.exists()


def test_another_image_of_the_same_name_has_its_own_time(folder: Path):
    keeper, image = keeper_of(folder), folder / "model.weights"
    image.touch()
    assert keeper.look(0.0)
    (folder / "model.part").touch()
    (folder / "model.part").rename(image)
    assert keeper.look(40.0)
    assert image.exists()


def test_what_is_being_written_stays_and_what_a_killed_writer_left_goes(folder: Path):
    keeper = keeper_of(folder)
    for name in ("left.part", "left.lock", "now.part"):
        (folder / name).touch()
    with held(folder / "now.lock"):
        assert keeper.look(0.0)
        assert keeper.look(LINGER_S)
        assert names(folder) == {"now.part", "now.lock"}


def test_a_folder_has_one_keeper_at_a_time(folder: Path):
    keeper = keeper_of(folder)
    assert become_keeper(folder) is None
    assert not keeper.is_needed_again()
    make_private(folder)
    assert become_keeper(folder) is not None


def test_a_keeper_that_is_about_to_end_stays_if_an_image_has_come(folder: Path):
    keeper = keeper_of(folder)
    (folder / "model.weights").touch()
    assert keeper.is_needed_again()
    assert become_keeper(folder) is None


def test_an_empty_folder_goes_with_its_keeper_if_it_was_made_for_images(folder: Path):
    assert not keeper_of(folder).is_needed_again()
    assert not folder.exists()


def test_a_folder_that_was_there_before_stays(tmp_path: Path):
    tmp_path.chmod(0o700)
    assert not keeper_of(tmp_path).is_needed_again()
    assert list(tmp_path.iterdir()) == []


def test_a_keeper_ends_when_its_folder_has_gone(folder: Path):
    keeper = keeper_of(folder)
    folder.rmdir()
    assert not keeper.look(0.0)
    assert not keeper.is_needed_again()


def test_a_sweep_waits_for_nothing_but_leaves_what_is_held(folder: Path):
    for name in ("unused.weights", "left.part", "left.lock"):
        (folder / name).touch()
    with held(folder / "used.weights"):
        sweep(folder)
        assert names(folder) == {"used.weights"}
