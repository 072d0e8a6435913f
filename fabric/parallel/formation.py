"""Which kind of group the ranks along an axis of a mesh form."""

from dataclasses import dataclass, field, replace

from fabric.parallel.gloo import GlooGroup
from fabric.parallel.group import Group, SoloGroup
from fabric.parallel.hierarchical import HierarchicalGroup
from fabric.parallel.mesh import Axis, Mesh
from fabric.parallel.nccl import NcclGroup
from fabric.parallel.peers import Peers
from fabric.parallel.rendezvous import Membership, Rendezvous
from fabric.parallel.shm import ShmGroup, ShmSettings


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """How long groups wait.

    Attributes:
        timeout_s: Longest wait of one operation for ranks that are alive; None is for ever.
            Ranks that are lost are noticed without it.
        shm: Of groups in shared memory, except for the timeout.
    """

    timeout_s: float | None = None
    shm: ShmSettings = field(default_factory=ShmSettings)


def join(rendezvous: Rendezvous, rank: int) -> Membership:
    """Become the mesh's rank in the rendezvous's epoch; needed before ``make_group``."""
    return Membership(rendezvous, _member(rank))


def make_group(
    mesh: Mesh,
    axis: Axis,
    rank: int,
    rendezvous: Rendezvous,
    settings: GroupSettings | None = None,
) -> Group:
    """Form the group along an axis that a rank belongs to; returns when all its ranks have.

    Args:
        mesh: The devices; the same for all ranks.
        axis: Each can be formed once in an epoch, in the same order on all ranks.
        rank: This process's, in the mesh; ``join`` must have been called for it.
        rendezvous: Where the ranks find each other.
        settings: The same for all ranks.

    Returns:
        Shared memory for ranks on one host, TCP for ranks on different ones, both for a mix;
        NCCL on GPUs. Ranks are numbered in the order of the axis.

    Raises:
        GroupError: Not all ranks came.
    """
    settings = settings or GroupSettings()
    ranks = mesh.ranks_along(axis, rank)
    name = f"{axis}/{ranks[0]}"
    if len(ranks) == 1:
        return SoloGroup()
    if all(mesh.devices[r].is_cuda for r in ranks):
        return NcclGroup(_peers(rendezvous, name, ranks), ranks.index(rank))
    hosts = mesh.hosts(ranks)
    if len(hosts) == 1:
        return _shm(rendezvous, name, ranks, rank, settings)
    if len(hosts) == len(ranks):
        return _gloo(rendezvous, name, ranks, rank, settings)
    return _hierarchical(rendezvous, name, hosts, rank, settings)


def _hierarchical(
    rendezvous: Rendezvous,
    name: str,
    hosts: tuple[tuple[int, ...], ...],
    rank: int,
    settings: GroupSettings,
) -> Group:
    ranks = tuple(sorted(r for host in hosts for r in host))
    (own,) = (host for host in hosts if rank in host)
    leaders = tuple(host[0] for host in hosts)
    local: Group = SoloGroup()
    if len(own) > 1:
        local = _shm(rendezvous, f"{name}/host-{own[0]}", own, rank, settings)
    everybody = _gloo(rendezvous, f"{name}/all", ranks, rank, settings)
    between = None
    if rank in leaders:
        between = _gloo(rendezvous, f"{name}/leaders", leaders, rank, settings)
    numbered = tuple(tuple(ranks.index(r) for r in host) for host in hosts)
    return HierarchicalGroup(ranks.index(rank), numbered, local, between, everybody)


def _shm(
    rendezvous: Rendezvous, name: str, ranks: tuple[int, ...], rank: int, settings: GroupSettings
) -> Group:
    shm = replace(settings.shm, timeout_s=settings.timeout_s)
    return ShmGroup(rendezvous, name, ranks.index(rank), len(ranks), shm)


def _gloo(
    rendezvous: Rendezvous, name: str, ranks: tuple[int, ...], rank: int, settings: GroupSettings
) -> Group:
    return GlooGroup(_peers(rendezvous, name, ranks), ranks.index(rank), settings.timeout_s)


def _peers(rendezvous: Rendezvous, name: str, ranks: tuple[int, ...]) -> Peers:
    return Peers(rendezvous, name, tuple(map(_member, ranks)))


def _member(rank: int) -> str:
    return f"rank-{rank}"
