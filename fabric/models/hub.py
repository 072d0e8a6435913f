"""Models from the Hugging Face hub."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download

# The error of its HTTP library, whichever that is in the installed version.
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from fabric.core.errors import SourceError
from fabric.models.progress import Progress

# Neither pickles (.bin, .pt, .pth) nor code: they could run anything.
PATTERNS = ("*.json", "*.safetensors", "*.jinja")
_REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def fetch_from_hub(repository: str, progress: Progress) -> Path:
    """Download ``org/name[@revision]`` into the hub's own cache, or find it there.

    HF_HUB_OFFLINE, HF_HOME and HF_TOKEN mean what they mean to huggingface_hub.

    Raises:
        SourceError: The name is malformed, or the repository can't be fetched.
    """
    match = _REPOSITORY.fullmatch(repository)
    if match is None:
        raise SourceError(f"hf:{repository} is not of the form hf:org/name[@rev]")
    progress.update("download", 0, None)
    try:
        folder = snapshot_download(
            match["name"], revision=match["revision"], allow_patterns=list(PATTERNS)
        )
    except (HTTPError, OSError, ValueError) as error:
        raise SourceError(f"hf:{repository} can't be fetched: {error}") from error
    path = Path(str(folder))
    if not (path / "config.json").is_file():
        raise SourceError(f"hf:{repository} has no config.json")
    return path
