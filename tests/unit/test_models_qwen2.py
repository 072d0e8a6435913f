"""The Qwen2 family: Llama's decoder with biases, and a tokenizer of its own."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Vocabulary
from transformers import Qwen2Config, Qwen2Tokenizer
from transformers import Qwen2ForCausalLM as TransformersQwen2

from fabric.core.errors import CheckpointError
from fabric.models.config import ModelConfig
from fabric.models.gguf_tokenizer import gguf_special_ids, gguf_tokenizer
from fabric.models.llama import LlamaForCausalLM
from fabric.models.loader import load_model
from fabric.models.progress import NoProgress
from fabric.models.sources import LocalModel
from fabric.models.tokenizer import Tokenizer
from kernels.dispatch import available_backends, select_backend
from kernels.ops import Backend
from kernels.reference import ReferenceBackend
from tests.unit.test_tokenizer_gguf import BYTE_LEVEL
from tests.unit.tiny_models import (
    TINY_QWEN2,
    DictCheckpoint,
    OneSequence,
    random_tensors,
    save_folder,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SHAPES = {
    "grouped queries": {},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 64},
    "the 0.5B's heads": {
        "hidden_size": 112,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
}
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
MERGES = ["1 2", "h e", "l l", "' l", "Ġ h", "Ġh e", "Ċ Ċ", "Ġ Ġ"]
PIECES = [*BYTE_LEVEL["tokenizer.ggml.tokens"][1:-2], *(m.replace(" ", "") for m in MERGES)]
FIRST_MARK = len(PIECES)
QWEN2_TOKENIZER: dict[str, object] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": [*PIECES, *MARKS, "[PAD]"],
    "tokenizer.ggml.token_type": [*[1] * FIRST_MARK, 3, 3, 3, 4, 5],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.eos_token_id": FIRST_MARK + 2,
    "tokenizer.ggml.bos_token_id": FIRST_MARK,
    "tokenizer.ggml.add_bos_token": False,
}


@pytest.fixture(params=available_backends("cpu"))
def backend(request: pytest.FixtureRequest) -> Backend:
    return select_backend("cpu", request.param, num_threads=1)


@pytest.fixture(scope="module")
def vocabularies() -> tuple[Vocabulary, Qwen2Tokenizer]:
    """The tokenizer out of GGUF metadata, and transformers' from the same vocabulary."""
    theirs = Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate([*PIECES, *MARKS])},
        merges=[tuple(merge.split()) for merge in MERGES],
        additional_special_tokens=MARKS[:3],
    )
    theirs.add_tokens(MARKS[3:])
    return gguf_tokenizer(QWEN2_TOKENIZER), theirs


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES.keys())
def test_logits_and_tokens_equal_those_of_transformers(backend: Backend, change: dict[str, object]):
    raw = TINY_QWEN2 | change
    config = ModelConfig.from_hf(raw)
    tensors = random_tensors(config)
    theirs = TransformersQwen2(Qwen2Config(**raw, attn_implementation="eager")).eval()
    absent, unused = theirs.load_state_dict(tensors, strict=False)
    assert (unused, set(absent) <= {"lm_head.weight"}) == ([], True)
    theirs.tie_weights()
    model = LlamaForCausalLM(config, backend, torch.float32)
    model.load_weights(DictCheckpoint(tensors), NoProgress())
    token_ids = torch.arange(100).remainder(96).tolist()
    sequence = OneSequence(model, torch.float32)
    logits = torch.cat([sequence.logits(token_ids[:61]), sequence.logits(token_ids[61:])])
    with torch.no_grad():
        expected = theirs(torch.tensor([token_ids])).logits[0]
    assert (logits - expected).abs().max() < 1e-4
    output = theirs.generate(torch.tensor([token_ids[:9]]), do_sample=False, max_new_tokens=32)
    ours = OneSequence(model, torch.float32).greedy(token_ids[:9], 32)
    assert output[0, 9:].tolist() == ours


def test_a_folder_that_transformers_wrote_is_loaded(tmp_path: Path):
    config = Qwen2Config(**TINY_QWEN2, attn_implementation="eager")
    theirs = TransformersQwen2(config).eval()
    theirs.save_pretrained(tmp_path)
    local = LocalModel(tmp_path, "hf", "")
    loaded = load_model(local, ReferenceBackend(), "float32", None, NoProgress())
    logits = OneSequence(loaded.model, loaded.dtype).logits([5, 6, 7])
    with torch.no_grad():
        expected = theirs(torch.tensor([[5, 6, 7]])).logits[0]
    assert loaded.config.has_qkv_bias
    assert (logits - expected).abs().max() < 1e-4


def test_biases_that_are_missing_or_that_llama_lacks_are_named(tmp_path: Path):
    tensors = random_tensors(ModelConfig.from_hf(TINY_QWEN2))
    as_llama = TINY_QWEN2 | {"architectures": ["LlamaForCausalLM"]}
    for raw, kept, named in (
        (TINY_QWEN2, "weight", r"missing: model\.layers\.0\.self_attn\.k_proj\.bias"),
        (as_llama, "", r"unused: model\.layers\.0\.self_attn\.k_proj\.bias"),
    ):
        some = {name: tensor for name, tensor in tensors.items() if name.endswith(kept)}
        local = LocalModel(save_folder(tmp_path / "model", raw, some), "hf", "")
        with pytest.raises(CheckpointError, match=named):
            load_model(local, ReferenceBackend(), "auto", None, NoProgress())


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), max_size=8)
        | st.sampled_from(["hello", "he'll", "'LL", " he", "12", "1234", "\n\n", "  ", "e\u0301"])
        | st.sampled_from(MARKS)
    )
)
def test_token_ids_equal_those_of_transformers(
    vocabularies: tuple[Vocabulary, Qwen2Tokenizer], words: list[str]
):
    ours, theirs = vocabularies
    text = "".join(words)
    assert ours.encode(text).ids == theirs.encode(text)


def test_texts_and_chats_end_at_marks_of_their_own():
    assert gguf_special_ids(QWEN2_TOKENIZER) == (FIRST_MARK, (FIRST_MARK + 2, FIRST_MARK))
    of_base_model = QWEN2_TOKENIZER | {"tokenizer.ggml.eos_token_id": FIRST_MARK}
    assert gguf_special_ids(of_base_model) == (FIRST_MARK, (FIRST_MARK,))


def test_a_transformers_tokenizer_folder_gives_the_same_ids(
    tmp_path: Path, vocabularies: tuple[Vocabulary, Qwen2Tokenizer]
):
    ours, theirs = vocabularies
    theirs.save_pretrained(tmp_path)
    text = "he'll say 12<|im_end|>\n\n  hello"
    assert Tokenizer.load(tmp_path).encode(text) == ours.encode(text).ids
