"""The environment that Ray needs; apart from the rest because Ray reads it when imported."""

import os
import secrets


def prepare_environment(address: str | None) -> None:
    """Set what must be set before Ray is imported; what the user has set stays.

    Token authentication is always on. A local instance of ours gets a token of its own and
    listens on loopback alone: the last variable makes Ray take the loopback address for the
    node's own, on every system.

    Args:
        address: The Ray cluster to join; None for a local instance.
    """
    environment = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_worker_niceness": "0",
    }
    if address is None:
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    for name, value in environment.items():
        os.environ.setdefault(name, value)
