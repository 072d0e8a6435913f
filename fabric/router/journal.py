"""What is needed to go on with a stream elsewhere: its prompt, seed and tokens so far."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fabric.core.request import GenerationRequest, SequenceDelta


@dataclass(slots=True)
class JournalEntry:
    """One request in flight; ``emitted`` holds the tokens already streamed, by sequence."""

    request: GenerationRequest
    emitted: dict[int, list[int]] = field(default_factory=dict)

    def record(self, delta: SequenceDelta) -> None:
        """Remember tokens that the client has been sent."""
        self.emitted.setdefault(delta.index, []).extend(delta.token_ids)


class Journal:
    """The entries of the requests in flight; dropped at their end."""

    def __init__(self) -> None:
        self._entries: dict[int, JournalEntry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def entry(self, request: GenerationRequest) -> Iterator[JournalEntry]:
        """Keep an entry while the request is in flight."""
        entry = JournalEntry(request)
        self._entries[id(entry)] = entry
        try:
            yield entry
        finally:
            del self._entries[id(entry)]
