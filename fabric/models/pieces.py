"""What bytes a vocabulary's pieces stand for, so that text can be put together token by token.

Two spellings are known: ByteLevel (GPT-2: each byte has a printable stand-in) and SentencePiece
with byte fallback (a lower block for a space, ``<0x0A>`` for a byte).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fabric.core.errors import SourceError

SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SENTENCEPIECE = {"Replace", "ByteFallback", "Fuse", "Strip"}


@dataclass(frozen=True, slots=True)
class PieceSpelling:
    """How pieces are spelled; ``strips_first_space``: a text's first space isn't part of it."""

    is_byte_level: bool
    strips_first_space: bool = False

    def to_bytes(self, piece: str) -> bytes:
        """The bytes that a piece stands for, possibly not whole characters."""
        if self.is_byte_level:
            try:
                return bytes(_BYTE_OF[char] for char in piece)
            except KeyError:
                return piece.encode()
        if match := _BYTE.fullmatch(piece):
            return bytes([int(match[1], 16)])
        return piece.replace(SPACE, " ").encode()


def spelling_of(decoder: Mapping[str, object] | None) -> PieceSpelling:
    """Find the spelling from the ``decoder`` of a tokenizer.json.

    Raises:
        SourceError: It is neither ByteLevel nor SentencePiece with byte fallback.
    """
    steps = _steps(decoder or {})
    kinds = {str(step.get("type")) for step in steps}
    if kinds == {"ByteLevel"}:
        return PieceSpelling(is_byte_level=True)
    if "ByteFallback" in kinds and kinds <= _SENTENCEPIECE:
        return PieceSpelling(is_byte_level=False, strips_first_space="Strip" in kinds)
    raise SourceError(
        f"tokenizer decoder {sorted(kinds)} is not supported; "
        f"supported: ByteLevel, and SentencePiece with ByteFallback"
    )


def _steps(decoder: Mapping[str, object]) -> list[Mapping[str, object]]:
    steps = decoder.get("decoders")
    return steps if isinstance(steps, list) else [decoder]


def _byte_stand_ins() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 characters are themselves, others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_stand_ins()
