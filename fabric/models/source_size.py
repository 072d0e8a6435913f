"""How large a model's weights are on disk, where that is known without fetching anything."""

from pathlib import Path

WEIGHTS = "*.safetensors"


def weights_on_disk(source: str) -> int | None:
    """The bytes of the files that a source's weights are in; None: not on this host's disk.

    Args:
        source: As in a configuration; only folders and .gguf files are looked at.
    """
    path = Path(source).expanduser()
    try:
        if path.is_file() and path.suffix == ".gguf":
            return path.stat().st_size
        return sum(file.stat().st_size for file in path.glob(WEIGHTS)) or None
    except OSError:
        return None
