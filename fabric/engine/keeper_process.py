"""Processes that keep or remove memory of this host after workers have gone."""

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

START_TIMEOUT_S = 10.0
# The sticky bit means nothing in a folder of one user's; it tells folders that were made here.
PRIVATE_MODE = stat.S_ISVTX | stat.S_IRWXU


def start_keeper(script: str, arguments: Sequence[str], fd: int) -> None:
    """Run a script that leaves this process's session, and hand it ``fd``.

    Raises:
        OSError: It can't be started.
    """
    try:
        subprocess.run(
            # By its path, without site-packages: fast, and the same wherever the code comes from.
            [sys.executable, "-I", "-S", script, str(fd), *arguments],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
            timeout=START_TIMEOUT_S,
        )
    except subprocess.SubprocessError as error:
        raise ConnectionError(f"a keeper can't be started: {error}") from error


def make_private(folder: Path) -> None:
    """Make a folder for this user alone, if it isn't there.

    Raises:
        OSError: It can't be made, or others can use it.
    """
    while True:
        try:
            folder.mkdir(mode=PRIVATE_MODE, parents=True)
        except FileExistsError:
            if folder.is_file():
                raise
        with contextlib.suppress(FileNotFoundError):  # a keeper has removed it meanwhile
            found = folder.lstat()
            break
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_ours or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder that only this user can use")
