"""Find stop strings in text that arrives in pieces."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Pattern:
    """A stop string and how much of it the text ends with (Knuth, Morris and Pratt, 1977)."""

    text: str
    borders: list[int] = field(init=False)
    matched: int = 0

    def __post_init__(self) -> None:
        self.borders = [0] * len(self.text)
        for index in range(1, len(self.text)):
            self.borders[index] = self._after(self.text[index], self.borders[index - 1])

    def push(self, char: str) -> bool:
        """Take one character; return whether the text now ends with the whole string."""
        self.matched = self._after(char, self.matched)
        return self.matched == len(self.text)

    def _after(self, char: str, matched: int) -> int:
        while matched and self.text[matched] != char:
            matched = self.borders[matched - 1]
        return matched + 1 if self.text[matched] == char else 0


class StopStringMatcher:
    """Passes text on until a stop string appears, holding back what may be the start of one.

    The string that is complete first wins; of those that end together, the longest. How the text
    is cut into pieces makes no difference.
    """

    def __init__(self, stops: Sequence[str], include_stop: bool) -> None:
        """Watch for ``stops``, none of them empty; ``include_stop`` leaves the match in."""
        self._patterns = [_Pattern(stop) for stop in sorted(set(stops), key=len, reverse=True)]
        self._starts = frozenset(stop[0] for stop in stops)
        self._include_stop = include_stop
        self._held = ""
        self._found: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; return what may be shown, and the stop string once it has appeared."""
        if self._found is not None:
            return "", self._found
        if not self._held and self._starts.isdisjoint(text):
            return text, None
        start = len(self._held)
        self._held += text
        for index, char in enumerate(text, start + 1):
            hits = [pattern.text for pattern in self._patterns if pattern.push(char)]
            if hits:
                return self._finish(index, hits[0])
        keep = max(pattern.matched for pattern in self._patterns)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown, None

    def flush(self) -> str:
        """End the text; return what was held back."""
        held, self._held = self._held, ""
        return held

    def _finish(self, end: int, stop: str) -> tuple[str, str]:
        shown = self._held[: end if self._include_stop else end - len(stop)]
        self._held, self._found = "", stop
        return shown, stop
