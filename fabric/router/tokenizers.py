"""The models' tokenizers: loaded once, off the event loop, and kept off it for long prompts."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from fabric.core.request import ModelCard

T = TypeVar("T")

# About a millisecond of tokenizing; handing it to a thread costs a tenth of that.
INLINE_CHARS = 2_000


class Tokenizer(Protocol):
    """Turns text into token ids and back."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The text's token ids."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The ids' text."""
        ...

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """The token ids of a conversation; each message has a role and a content."""
        ...


class TokenizerCache:
    """One tokenizer for each model."""

    def __init__(self, load: Callable[[Path], Tokenizer], num_threads: int = 2) -> None:
        self._load = load
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenize")
        self._loaded: dict[str, asyncio.Future[Tokenizer]] = {}

    def stop(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def tokenizer(self, card: ModelCard) -> Tokenizer:
        """The model's tokenizer, loaded on first use."""
        path = card.tokenizer_path
        loading = self._loaded.get(path)
        if loading is None:
            loop = asyncio.get_running_loop()
            loading = loop.run_in_executor(self._threads, self._load, Path(path))
            self._loaded[path] = loading
        try:
            # A client that goes away must not cancel the load that others wait for.
            return await asyncio.shield(loading)
        except Exception:
            self._loaded.pop(path, None)
            raise

    async def run(self, num_chars: int, work: Callable[[], T]) -> T:
        """Do tokenizing work: here if it is short, in a thread if it would stall others."""
        if num_chars <= INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
