import pytest

from fabric.client import AsyncClient, RetryPolicy
from tests.integration.router_world import running_world


@pytest.fixture
async def world():
    """A router and a device group with a fake engine, over real sockets."""
    async with running_world() as running:
        yield running


@pytest.fixture
async def client(world):
    """A client of the world's router that tries everything once."""
    async with AsyncClient(world.target, retry=RetryPolicy(max_attempts=1)) as connected:
        yield connected
