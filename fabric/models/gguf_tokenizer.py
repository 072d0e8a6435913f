"""Build a tokenizer from a GGUF file's metadata."""

from collections.abc import Mapping
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from fabric.core.errors import SourceError
from fabric.models.pieces import SPACE

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_OWN_WORDS = {
    "llama-bpe": _LLAMA3_WORDS,
    "qwen2": _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}"),
}
_PREFIX = "tokenizer.ggml."
# Its chats end with one mark and its texts with another; files name only the first.
_QWEN2_END_OF_TEXT = "<|endoftext|>"


def gguf_tokenizer(metadata: Mapping[str, object]) -> Tokenizer:
    """Build the tokenizer that ``tokenizer.ggml.*`` describes.

    Raises:
        SourceError: It is missing, malformed or of an unsupported kind.
    """
    kind = metadata.get(f"{_PREFIX}model")
    tokens = _strings(metadata, "tokens")
    if kind == "gpt2":
        tokenizer = _byte_level(metadata, tokens)
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata, tokens)
    else:
        raise SourceError(f"GGUF tokenizer {kind!r} is not supported; supported: gpt2, llama")
    types = _numbers(metadata, "token_type", len(tokens))
    tokenizer.add_tokens(
        [
            AddedToken(token, special=token_type == _CONTROL, normalized=False)
            for token, token_type in zip(tokens, types, strict=True)
            if token_type in (_CONTROL, _USER_DEFINED)
        ]
    )
    bos, _ = gguf_special_ids(metadata)
    if bos is not None and bool(metadata.get(f"{_PREFIX}add_bos_token", kind == "llama")):
        name = tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{name} $A", special_tokens=[(name, bos)]
        )
    return tokenizer


def gguf_special_ids(metadata: Mapping[str, object]) -> tuple[int | None, tuple[int, ...]]:
    """The id that begins a text, and those that end one.

    Raises:
        SourceError: An id is outside the vocabulary.
    """
    tokens = _strings(metadata, "tokens")
    ids: dict[str, int] = {}
    for name in ("bos", "eos", "eot"):
        value = metadata.get(f"{_PREFIX}{name}_token_id")
        if value is None:
            continue
        if not isinstance(value, int) or not 0 <= value < len(tokens):
            raise SourceError(f"{_PREFIX}{name}_token_id {value!r} is outside the vocabulary")
        ids[name] = value
    ends = [ids[name] for name in ("eos", "eot") if name in ids]
    if metadata.get(f"{_PREFIX}pre") == "qwen2" and _QWEN2_END_OF_TEXT in tokens:
        ends.append(tokens.index(_QWEN2_END_OF_TEXT))
    return ids.get("bos"), tuple(dict.fromkeys(ends))


def gguf_chat_template(metadata: Mapping[str, object]) -> str | None:
    """The chat template, if there is one."""
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def _byte_level(metadata: Mapping[str, object], tokens: list[str]) -> Tokenizer:
    name = metadata.get(f"{_PREFIX}pre", "default")
    before: dict[object, list[Any]] = {
        "default": [],
        "gpt-2": [],
        "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    }
    for family, words in _OWN_WORDS.items():
        before[family] = [pre_tokenizers.Split(Regex(words), "isolated")]
    if name not in before:
        supported = ", ".join(map(str, before))
        raise SourceError(f"GGUF pre-tokenizer {name!r} is not supported; supported: {supported}")
    pairs = [tuple(merge.split(" ", 1)) for merge in _strings(metadata, "merges")]
    tokenizer = _bpe(tokens, pairs, ignore_merges=name == "llama-bpe")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name not in _OWN_WORDS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before[name], byte_level])
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, object], tokens: list[str]) -> Tokenizer:
    scores = _numbers(metadata, "scores", len(tokens))
    types = _numbers(metadata, "token_type", len(tokens))
    unknown = next((t for t, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    tokenizer = _bpe(
        tokens, _merges(tokens, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    has_prefix = bool(metadata.get(f"{_PREFIX}add_space_prefix", True))
    prefix = [normalizers.Prepend(SPACE)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence([*steps, *strip])
    return tokenizer


def _merges(tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two, best score first: SentencePiece's BPE as merge rules."""
    rank = dict(zip(tokens, scores, strict=True))
    found = [
        (-rank[token], index, token[:cut], token[cut:])
        for index, token in enumerate(tokens)
        for cut in range(1, len(token))
        if token[:cut] in rank and token[cut:] in rank
    ]
    return [(left, right) for _, _, left, right in sorted(found)]


def _bpe(tokens: list[str], merges: list[Any], **options: Any) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        return Tokenizer(models.BPE(vocabulary, merges, **options))
    # The library raises bare Exception for merges outside the vocabulary.
    except Exception as error:
        raise SourceError(f"GGUF tokenizer: {error}") from error


def _strings(metadata: Mapping[str, object], key: str) -> list[str]:
    values = metadata.get(_PREFIX + key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise SourceError(f"GGUF metadata: {_PREFIX}{key} is missing or not a list of strings")
    return values


def _numbers(metadata: Mapping[str, object], key: str, length: int) -> list[Any]:
    values = metadata.get(_PREFIX + key)
    if not isinstance(values, list) or len(values) != length:
        raise SourceError(f"GGUF metadata: {_PREFIX}{key} is missing or not {length} long")
    return values
