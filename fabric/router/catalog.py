"""Which groups and models there are, and what state they are in."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fabric.core.errors import ModelNotFound, Unavailable
from fabric.core.request import ModelCard, ServedModel
from fabric.core.status import GroupState, GroupStatus, ModelState, ModelStatus
from fabric.router.connection import GroupAddress as GroupAddress
from fabric.router.connection import LinkOptions
from fabric.router.group_link import GroupLink
from fabric.router.routing import ReadyGroup
from fabric.rpc.frames import FrameCodec

STALE_REPORT_S = 3.0
RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class CatalogRules:
    """When a group counts as stalled, and how long one that is taken off the list may linger."""

    stall_after_s: float = 10.0
    leave_timeout_s: float = 600.0


class Catalog:
    """The device groups that this router knows, and the models that they serve.

    A model once seen stays known while its groups restart, so that requests for it are told to
    come back, not that it doesn't exist.
    """

    def __init__(
        self,
        options: LinkOptions,
        model_ids: tuple[str, ...],
        rules: CatalogRules,
        on_change: Callable[[], None],
    ) -> None:
        self._options = options
        self._rules = rules
        self._on_change = on_change
        self._codec = FrameCodec()
        self._links: dict[str, GroupLink] = {}
        self._leaving: dict[GroupAddress, GroupLink] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._served: dict[str, ServedModel | None] = dict.fromkeys(model_ids)
        self._reasons: Mapping[str, str] = {}

    def set_groups(self, addresses: tuple[GroupAddress, ...]) -> None:
        """Make these the known groups; links whose address is unchanged are kept.

        A group that is gone gets nothing new, and its link closes when its streams have ended, or
        after ``leave_timeout_s``. One that has moved is another incarnation: what was at its old
        address is dead or must be, and so are its streams.
        """
        wanted = {address.name: address for address in addresses}
        for name, link in tuple(self._links.items()):
            if wanted.get(name) != link.address:
                del self._links[name]
                self._close(link, self._rules.leave_timeout_s if name not in wanted else 0.0)
        for name, address in wanted.items():
            if name not in self._links:
                self._links[name] = self._new_link(address)
        self._changed()

    def _new_link(self, address: GroupAddress) -> GroupLink:
        link = self._leaving.pop(address, None)
        if link is not None and link.stay():
            return link
        return GroupLink(address, self._options, self._codec, self._changed)

    def _close(self, link: GroupLink, timeout_s: float) -> None:
        self._leaving[link.address] = link
        closing = asyncio.create_task(link.leave(timeout_s))
        self._closing.add(closing)
        closing.add_done_callback(lambda task: self._closed(link, task))

    def _closed(self, link: GroupLink, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if self._leaving.get(link.address) is link:
            del self._leaving[link.address]

    def set_models(self, model_ids: Iterable[str]) -> None:
        """Make these the known models, beside those that known groups serve."""
        self._served = {model: self._served.get(model) for model in model_ids}
        self._changed()

    def explain(self, reasons: Mapping[str, str]) -> None:
        """Note why groups are down, by name."""
        self._reasons = reasons

    async def stop(self) -> None:
        """Close all links."""
        self.set_groups(())
        links = tuple(self._leaving.values())
        await asyncio.gather(*(link.stop() for link in links), *self._closing)

    def link(self, group: str) -> GroupLink:
        """The link to a group.

        Raises:
            Unavailable: The group is not known any more.
        """
        if group not in self._links:
            raise Unavailable(f"device group {group} is gone", RETRY_AFTER_S)
        return self._links[group]

    @property
    def group_names(self) -> tuple[str, ...]:
        """The known groups, by name."""
        return tuple(sorted(self._links))

    @property
    def model_ids(self) -> tuple[str, ...]:
        """The known models, by id, whether they can answer or not."""
        return tuple(sorted(self._served))

    def served(self, model: str) -> ServedModel:
        """What was last known of a model.

        Raises:
            ModelNotFound: Nobody serves or ever served it.
            Unavailable: It is expected, and has not been loaded yet.
        """
        if model not in self._served:
            raise ModelNotFound(model, self.model_ids)
        found = self._served[model]
        if found is None:
            raise Unavailable(f"model {model!r} is being loaded", RETRY_AFTER_S)
        return found

    def ready_groups(self, model: str) -> tuple[str, ...]:
        """The groups that can take a request for the model now, by name.

        Raises:
            Unavailable: There are none; tells why.
        """
        states = {name: self.group_state(name) for name in self._groups_of(model)}
        ready = tuple(name for name, state in states.items() if state == GroupState.READY)
        if not ready:
            why = ", ".join(f"{name} is {state}" for name, state in states.items())
            raise Unavailable(
                f"no device group can serve {model!r} now: {why or 'none is connected'}",
                RETRY_AFTER_S,
            )
        return ready

    def ready(self, model: str) -> tuple[ReadyGroup, ...]:
        """The groups that can take a request for the model now, and what they told.

        Raises:
            Unavailable: There are none; tells why.
        """
        found = ((name, self._links[name]) for name in self.ready_groups(model))
        return tuple(ReadyGroup(name, link.models, link.load) for name, link in found)

    def group_state(self, group: str) -> GroupState:
        """Whether a group can take requests; it must make progress if it has work."""
        link = self._links[group]
        if not link.is_connected:
            return GroupState.DOWN
        if link.load.stalled_s >= self._rules.stall_after_s or link.silent_s() >= STALE_REPORT_S:
            return GroupState.STALLED
        return GroupState.DRAINING if link.is_draining else GroupState.READY

    def group_status(self, group: str) -> GroupStatus:
        """A group, described."""
        link, state = self._links[group], self.group_state(group)
        return GroupStatus(
            name=group,
            address=f"{link.address.host}:{link.address.port}",
            epoch=link.epoch,
            state=state,
            reason=self._reasons.get(group, "") if state is GroupState.DOWN else "",
            models=tuple(model.card.model for model in link.models),
            load=link.load,
        )

    def model_status(self, model: str) -> ModelStatus:
        """A model, described.

        Raises:
            ModelNotFound: Nobody serves or ever served it.
        """
        if model not in self._served:
            raise ModelNotFound(model, self.model_ids)
        served = self._served[model]
        states = {name: self.group_state(name) for name in self._groups_of(model)}
        ready = tuple(name for name, state in states.items() if state == GroupState.READY)
        state = ModelState.LOADING
        if ready:
            state = ModelState.READY
        elif GroupState.DRAINING in states.values():
            state = ModelState.DRAINING
        card = served.card if served else ModelCard(model, "", 0, 0, "", "")
        return ModelStatus(card, state, ready)

    def _groups_of(self, model: str) -> tuple[str, ...]:
        return tuple(
            name
            for name, link in sorted(self._links.items())
            if any(served.card.model == model for served in link.models)
        )

    def _changed(self) -> None:
        for link in self._links.values():
            self._served.update({model.card.model: model for model in link.models})
        self._on_change()
