"""Text to token ids and back, from a Hugging Face folder or a GGUF file. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from fabric.core.errors import InvalidRequest, SourceError
from fabric.models.chat import FIELD, ChatTemplate
from fabric.models.gguf_header import read_gguf_header
from fabric.models.gguf_tokenizer import gguf_chat_template, gguf_special_ids, gguf_tokenizer
from fabric.models.pieces import spelling_of


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """What a tokenizer's files say beyond the vocabulary."""

    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    chat_template: str | None = None


class Tokenizer:
    """A vocabulary with its chat template."""

    def __init__(self, vocabulary: tokenizers.Tokenizer, facts: TokenizerFacts) -> None:
        vocabulary.no_truncation()
        vocabulary.no_padding()
        self._vocabulary = vocabulary
        self._facts = facts
        decoder = vocabulary.decoder
        self._spelling = spelling_of(json.loads(decoder.__getstate__()) if decoder else None)
        self._special = frozenset(
            token for token, added in vocabulary.get_added_tokens_decoder().items() if added.special
        )
        self._bytes: dict[int, bytes] = {}
        self._chat = self._chat_template()

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Load from a folder with tokenizer.json, or from a GGUF file.

        Raises:
            SourceError: There is no tokenizer, or it is malformed or of an unsupported kind.
            CheckpointError: The GGUF file is malformed.
        """
        if path.is_file():
            return cls._load_gguf(path)
        config = _read_json(path / "tokenizer_config.json")
        file = path / "tokenizer.json"
        if not file.is_file():
            raise SourceError(f"{path} has no tokenizer.json")
        try:
            vocabulary = tokenizers.Tokenizer.from_file(str(file))
        # The library raises bare Exception for malformed files.
        except Exception as error:
            raise SourceError(f"{file}: not a tokenizer: {error}") from error
        bos, eos = (_special_id(vocabulary, config.get(f"{kind}_token")) for kind in ("bos", "eos"))
        template = path / "chat_template.jinja"
        chat = template.read_text(encoding="utf-8") if template.is_file() else _template(config)
        return cls(vocabulary, TokenizerFacts(bos, () if eos is None else (eos,), chat))

    @classmethod
    def _load_gguf(cls, path: Path) -> "Tokenizer":
        metadata = read_gguf_header(path).metadata
        bos, eos = gguf_special_ids(metadata)
        facts = TokenizerFacts(bos, eos, gguf_chat_template(metadata))
        return cls(gguf_tokenizer(metadata), facts)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model may have more rows than that."""
        return self._vocabulary.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text, if there is one."""
        return self._facts.bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return self._facts.eos_token_ids

    @property
    def strips_first_space(self) -> bool:
        """Whether a text's first space is SentencePiece's own and not part of the text."""
        return self._spelling.strips_first_space

    def is_special(self, token_id: int) -> bool:
        """Whether a token is a mark rather than text."""
        return token_id in self._special

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Turn text into ids; the names of special tokens in the text become those tokens."""
        # Only the batch form lets other threads run meanwhile: a long prompt takes a second.
        (encoding,) = self._vocabulary.encode_batch([text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for an id outside the vocabulary."""
        known = self._bytes.get(token_id)
        if known is None:
            piece = self._vocabulary.id_to_token(token_id)
            known = self._spelling.to_bytes(piece) if piece is not None else b""
            self._bytes[token_id] = known
        return known

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Turn ids into text; bytes that aren't UTF-8 become U+FFFD.

        Unlike the tokenizers library, byte-fallback pieces are decoded each on its own merit: one
        bad byte doesn't spoil its neighbours, which a stream may have sent already.
        """
        skipped = self._special if skip_special_tokens else frozenset()
        pieces = (self.token_bytes(token) for token in token_ids if token not in skipped)
        text = b"".join(pieces).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.strips_first_space else text

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Turn messages (``role``, ``content``) into ids, as the model was trained on them.

        Raises:
            InvalidRequest: The model has no chat template, or it refuses the messages.
        """
        if self._chat is None:
            raise InvalidRequest.of(FIELD, "the model has no chat template; send text instead")
        text = self._chat.render(messages, add_generation_prompt=add_generation_prompt)
        return self.encode(text, add_special_tokens=False)

    def _chat_template(self) -> ChatTemplate | None:
        if self._facts.chat_template is None:
            return None
        ids = {"bos_token": self.bos_token_id, "eos_token": next(iter(self.eos_token_ids), None)}
        names = {
            key: (self._vocabulary.id_to_token(token) if token is not None else None) or ""
            for key, token in ids.items()
        }
        return ChatTemplate(self._facts.chat_template, names)


def _read_json(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise SourceError(f"{path}: an object is needed")
    return raw


def _special_id(vocabulary: tokenizers.Tokenizer, token: object) -> int | None:
    name = token.get("content") if isinstance(token, dict) else token
    return vocabulary.token_to_id(name) if isinstance(name, str) else None


def _template(config: Mapping[str, object]) -> str | None:
    """The chat template of a tokenizer_config.json: a string, or the one named default."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None
