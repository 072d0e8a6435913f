import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from fabric.core.errors import InvalidRequest, SourceError
from fabric.models.detokenizer import IncrementalDetokenizer
from fabric.models.tokenizer import Tokenizer

TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "",
    "  two spaces, a tab\tand\n\nlines ",
    "Grüße, 你好 😀 👩‍👩‍👧",
    "</s> in text <s>",
    "1234 tokens",
]
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
EMOJI = "😀"


@pytest.fixture(scope="module")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level vocabulary: each byte, two merges, two special tokens, one plain added."""
    folder = tmp_path_factory.mktemp("byte_level")
    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"he": 256, "ll": 257}
    library = Library(models.BPE(vocabulary, [("h", "e"), ("l", "l")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken("<|start|>"), AddedToken("<|end|>")])
    library.add_tokens([AddedToken("<\uff5cplain\u2581one\uff5c>", normalized=False)])
    library.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|start|>", "eos_token": {"content": "<|end|>"}, "chat_template": CHAT}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def byte_level(byte_level_folder: Path) -> Tokenizer:
    return Tokenizer.load(byte_level_folder)


@pytest.fixture(scope="module")
def stories(stories_path: Path) -> Tokenizer:
    return Tokenizer.load(stories_path)


@pytest.fixture(params=["byte_level", "stories"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def streamed(tokenizer: Tokenizer, token_ids: list[int], prompt: list[int], skip: bool) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer, skip, prompt)
    return "".join(detokenizer.push([token]) for token in token_ids) + detokenizer.flush()


def test_stories260k_encodes_and_decodes_as_transformers_does(stories_path: Path):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(stories_path)
    ours = Tokenizer.load(stories_path)
    assert (ours.vocab_size, ours.bos_token_id, ours.eos_token_ids) == (512, 1, (2,))
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids
            assert ours.decode(ids, skip_special_tokens=special) == theirs.decode(
                ids, skip_special_tokens=special
            )


@settings(deadline=None)
@given(st.lists(st.integers(0, 260), max_size=30), st.booleans())
def test_byte_level_decoding_equals_the_librarys(
    byte_level: Tokenizer, byte_level_folder: Path, token_ids: list[int], skip: bool
):
    library = Library.from_file(str(byte_level_folder / "tokenizer.json"))
    expected = library.decode(token_ids, skip_special_tokens=skip)
    assert byte_level.decode(token_ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize("text", [text for text in TEXTS if "</s>" not in text])
def test_text_survives_the_round_trip(tokenizer: Tokenizer, text: str):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("name", ["byte_level", "stories"])
@settings(deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_streamed_text_equals_decoding_everything(
    request: pytest.FixtureRequest, name: str, data: st.DataObject, skip: bool
):
    tokenizer: Tokenizer = request.getfixturevalue(name)
    ids = st.lists(st.integers(0, tokenizer.vocab_size + 1), max_size=20)
    prompt, output = data.draw(ids), data.draw(ids)
    assert streamed(tokenizer, output, [], skip) == tokenizer.decode(
        output, skip_special_tokens=skip
    )
    words = tokenizer.encode("Once upon", add_special_tokens=False)
    whole = tokenizer.decode(words + output, skip_special_tokens=skip)
    assert "Once upon" + streamed(tokenizer, output, prompt + words, skip) == whole


def test_half_a_character_is_never_shown(tokenizer: Tokenizer):
    ids = tokenizer.encode(EMOJI, add_special_tokens=False)[-4:]
    detokenizer = IncrementalDetokenizer(tokenizer, True, tokenizer.encode("x"))
    assert [detokenizer.push([token]) for token in ids] == ["", "", "", EMOJI]


def test_an_unfinished_character_ends_as_a_replacement(tokenizer: Tokenizer):
    ids = tokenizer.encode(EMOJI, add_special_tokens=False)[-4:]
    detokenizer = IncrementalDetokenizer(tokenizer, True, tokenizer.encode("x"))
    assert (detokenizer.push(ids[:3]), detokenizer.flush()) == ("", "\ufffd")


def test_a_good_byte_is_not_spoilt_by_a_bad_neighbour(stories: Tokenizer):
    ids = [*stories.encode(EMOJI, add_special_tokens=False)[-4:], 3 + 0xFF]
    assert stories.decode(ids) == EMOJI + "\ufffd"


def test_the_space_between_prompt_and_output_is_kept(stories: Tokenizer):
    there = stories.encode("there", add_special_tokens=False)
    assert streamed(stories, there, stories.encode("Hello"), True) == " there"
    assert streamed(stories, there, [stories.bos_token_id or 0], True) == "there"


def test_the_chat_template_knows_the_special_tokens(byte_level: Tokenizer):
    ids = byte_level.apply_chat_template([{"role": "user", "content": "hell"}])
    assert byte_level.decode(ids, skip_special_tokens=False) == "user: hell<|end|>"
    assert byte_level.is_special(ids[-1])
    assert ids[-1] in byte_level.eos_token_ids


def test_a_model_without_a_chat_template_says_so(stories: Tokenizer):
    with pytest.raises(InvalidRequest, match="no chat template"):
        stories.apply_chat_template([{"role": "user", "content": "hi"}])


def test_a_template_file_goes_before_the_configuration(byte_level_folder: Path, tmp_path: Path):
    for file in byte_level_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "hell"}])
    assert tokenizer.decode(ids) == "hell!"


@pytest.mark.parametrize("content", [None, "{", '{"model": 3}'])
def test_a_folder_without_a_readable_tokenizer_is_refused(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(SourceError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_decoder_of_another_kind_is_refused(tmp_path: Path):
    library = Library(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    library.decoder = decoders.WordPiece()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(SourceError, match="WordPiece"):
        Tokenizer.load(tmp_path)


def test_loading_a_tokenizer_does_not_load_torch():
    code = (
        "import sys, fabric.models.tokenizer, fabric.models.detokenizer, fabric.models.sources;"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
