"""Tokenizers are loaded once, and long prompts are tokenized beside the event loop."""

import asyncio
from pathlib import Path

import pytest

from fabric.core.errors import SourceError
from fabric.core.request import ModelCard
from fabric.models.tokenizer import Tokenizer
from fabric.router.tokenizers import TokenizerCache


def card(path):
    return ModelCard("m", str(path), 256, 512, "float32", "LlamaForCausalLM")


async def test_requests_at_once_share_one_load():
    loaded = []
    cache = TokenizerCache(lambda path: loaded.append(path) or "tokenizer")
    found = await asyncio.gather(*(cache.tokenizer(card("/a")) for _ in range(5)))
    assert found == ["tokenizer"] * 5
    assert loaded == [Path("/a")]
    cache.stop()


async def test_a_failed_load_is_tried_again():
    outcomes = [SourceError("not there yet"), None]

    def load(path):
        if error := outcomes.pop(0):
            raise error
        return "tokenizer"

    cache = TokenizerCache(load)
    with pytest.raises(SourceError):
        await cache.tokenizer(card("/a"))
    assert await cache.tokenizer(card("/a")) == "tokenizer"
    cache.stop()


async def test_a_caller_that_leaves_does_not_cancel_the_load_of_others():
    cache = TokenizerCache(lambda path: "tokenizer")
    leaving = asyncio.create_task(cache.tokenizer(card("/a")))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await cache.tokenizer(card("/a")) == "tokenizer"
    cache.stop()


async def test_the_event_loop_turns_while_a_long_prompt_is_tokenized(stories_path):
    cache = TokenizerCache(Tokenizer.load)
    tokenizer = await cache.tokenizer(card(stories_path))
    text = " ".join(f"{number:x}" for number in range(200_000))
    work = asyncio.create_task(cache.run(len(text), lambda: tokenizer.encode(text)))
    num_turns = 0
    while not work.done():
        await asyncio.sleep(0.001)
        num_turns += 1
    assert num_turns > 10
    assert len(await work) > 100_000
    cache.stop()
