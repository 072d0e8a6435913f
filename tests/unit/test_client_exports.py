"""What `import fabric.client` offers."""

from pathlib import Path

import pytest

import fabric.client
from fabric.client.channel import TlsOptions, open_channel
from fabric.core.errors import ConfigError


def test_exports_are_sorted_and_complete():
    public = {
        name
        for name, value in vars(fabric.client).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("fabric.")
    }
    assert fabric.client.__all__ == sorted(fabric.client.__all__)
    assert public <= set(fabric.client.__all__)
    assert all(hasattr(fabric.client, name) for name in fabric.client.__all__)


async def test_a_missing_tls_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.pem"):
        open_channel("localhost:1", TlsOptions(ca_file=Path("nowhere.pem")))
