"""Text of a growing list of tokens, each character once it is certain."""

import codecs
from collections.abc import Sequence

from fabric.models.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Decodes one sequence's output tokens as they come, in constant time for each.

    All that was returned is what :meth:`Tokenizer.decode` makes of the prompt and the output, less
    the prompt's text: the output's first space stays where it parts two words. It never returns
    half a UTF-8 character.
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool, prompt_token_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._skips_special = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_at_start = tokenizer.strips_first_space and not any(
            self._bytes(token) for token in prompt_token_ids
        )

    def push(self, token_ids: Sequence[int]) -> str:
        """Take the next tokens; return the text that they complete."""
        return self._checked(b"".join(map(self._bytes, token_ids)), is_last=False)

    def flush(self) -> str:
        """End the sequence; return what is left, unfinished characters as U+FFFD."""
        return self._checked(b"", is_last=True)

    def _bytes(self, token_id: int) -> bytes:
        if self._skips_special and self._tokenizer.is_special(token_id):
            return b""
        return self._tokenizer.token_bytes(token_id)

    def _checked(self, data: bytes, *, is_last: bool) -> str:
        text = self._decoder.decode(data, is_last)
        if self._is_at_start and text:
            self._is_at_start = False
            return text.removeprefix(" ")
        return text
