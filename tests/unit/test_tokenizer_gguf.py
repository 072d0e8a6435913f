import json
from pathlib import Path

import pytest
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from fabric.core.errors import SourceError
from fabric.models.gguf_tokenizer import gguf_tokenizer
from fabric.models.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_LEVEL: dict[str, object] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["<|end|>", *ALPHABET, "12", "he"],
    "tokenizer.ggml.token_type": [CONTROL, *[NORMAL] * (len(ALPHABET) + 2)],
    "tokenizer.ggml.merges": ["1 2", "h e"],
    "tokenizer.ggml.eos_token_id": 0,
    "tokenizer.chat_template": "{{ messages[0].content }}<|end|>",
}


def write(path: Path, metadata: dict[str, object]) -> Path:
    writer = GGUFWriter(path, "llama")
    for key, value in metadata.items():
        match value:
            case str():
                writer.add_string(key, value)
            case int():
                writer.add_uint32(key, value)
            case _:
                writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def sentencepiece(
    stories_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizer of stories260K, and the same one out of a GGUF file."""
    model = json.loads((stories_path / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    last = -float(len(tokens))
    score = {"".join(pair): -float(rank) for rank, pair in enumerate(model["merges"])}
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [score.get(token, last) for token in tokens],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
        + [NORMAL] * (len(tokens) - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    path = write(tmp_path_factory.mktemp("gguf") / "stories.gguf", metadata)
    return Tokenizer.load(stories_path), Tokenizer.load(path)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8") | st.sampled_from("the lily and "), max_size=60))
def test_sentencepiece_merges_follow_from_scores(
    sentencepiece: tuple[Tokenizer, Tokenizer], text: str
):
    folder, file = sentencepiece
    ids = folder.encode(text)
    assert file.encode(text) == ids
    assert file.decode(ids) == folder.decode(ids)


def test_digits_are_split_before_merging(tmp_path: Path):
    tokenizer = Tokenizer.load(write(tmp_path / "model.gguf", BYTE_LEVEL))
    assert [tokenizer.decode([token]) for token in tokenizer.encode("he 12")] == [
        "he",
        " ",
        "1",
        "2",
    ]


def test_special_tokens_template_and_ends_come_from_metadata(tmp_path: Path):
    tokenizer = Tokenizer.load(write(tmp_path / "model.gguf", BYTE_LEVEL))
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "he"}])
    assert ids == [len(ALPHABET) + 2, 0]
    assert (tokenizer.is_special(0), tokenizer.eos_token_ids) == (True, (0,))
    assert (tokenizer.bos_token_id, tokenizer.vocab_size) == (None, len(ALPHABET) + 3)


@pytest.mark.parametrize("name", ["default", "gpt-2", "llama-bpe", "qwen2"])
def test_other_byte_level_kinds_round_trip(tmp_path: Path, name: str):
    metadata = BYTE_LEVEL | {"tokenizer.ggml.pre": name}
    tokenizer = Tokenizer.load(write(tmp_path / "model.gguf", metadata))
    text = "he said: 12 Grüße,\n  isn't it?"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer.ggml.model": "bert"}, "bert"),
        ({"tokenizer.ggml.pre": "tekken"}, "tekken.*supported: .*qwen2"),
        ({"tokenizer.ggml.tokens": None}, "tokens"),
        ({"tokenizer.ggml.token_type": [1]}, "token_type"),
        ({"tokenizer.ggml.merges": ["zz yy"]}, "GGUF tokenizer"),
        ({"tokenizer.ggml.merges": ["zz"]}, "GGUF tokenizer"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, "bos_token_id"),
    ],
)
def test_what_is_missing_or_unsupported_is_named(change: dict[str, object], named: str):
    with pytest.raises(SourceError, match=named):
        gguf_tokenizer(BYTE_LEVEL | change)
