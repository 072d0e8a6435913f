"""What the rendezvous knows of a group's ranks, where they can't see each other's processes."""

from dataclasses import dataclass

from fabric.core.errors import GroupAborted, PeerLost
from fabric.parallel.rendezvous import Rendezvous


@dataclass(frozen=True, slots=True)
class Peers:
    """A group's ranks as members of the rendezvous.

    Attributes:
        rendezvous: Where they beat (``Membership``).
        name: The group's, among those of the epoch.
        members: Each rank's, in the order of the ranks.
    """

    rendezvous: Rendezvous
    name: str
    members: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return len(self.members)

    def check(self) -> None:
        """Look whether the group can go on; costs a round trip.

        Raises:
            PeerLost: A rank is lost.
            GroupAborted: A rank has aborted the group.
            GroupError: The rendezvous is gone, or its epoch has been raised.
        """
        lost = set(self.rendezvous.lost())
        for rank, member in enumerate(self.members):
            if member in lost:
                raise PeerLost(rank, f"({member}) died, froze or can't be reached")
        aborter = self.rendezvous.peek(self._abort_key)
        if aborter is not None:
            raise GroupAborted(f"rank {aborter.decode()} aborted the group")

    def abort(self, rank: int) -> None:
        """Let every rank's next ``check`` fail."""
        self.rendezvous.set(self._abort_key, str(rank).encode())

    @property
    def _abort_key(self) -> str:
        return f"{self.name}/aborted"
