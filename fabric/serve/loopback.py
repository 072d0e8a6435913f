"""Keeps a port that Serve opens in each replica off the network."""

from typing import Any

from ray.serve._private import replica


def keep_serve_on_loopback() -> None:
    """Bind this replica's port for calls between deployments to loopback; call it in __init__.

    Ray Serve 2.60 binds it to every interface, without authentication, and unpickles what
    arrives; there is no setting for it. Nothing of ours uses it, so loopback loses nothing.
    """
    module: Any = replica
    add_port = module.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> Any:
        return add_port(server, address.replace("[::]", "127.0.0.1"))

    module.add_port_to_grpc_server = add_loopback_port
