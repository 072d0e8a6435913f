from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quants

from fabric.core.errors import CheckpointError
from fabric.models.config import ModelConfig
from fabric.models.gguf import SUPPORTED_TYPES, GgufCheckpoint
from fabric.models.gguf_header import read_gguf_header
from fabric.models.loader import load_model
from fabric.models.progress import NoProgress
from fabric.models.sources import LocalModel
from kernels.reference import ReferenceBackend
from tests.unit.tiny_models import TINY, TINY_QWEN2, OneSequence, random_tensors, save_folder

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(kind: GGMLQuantizationType, num_rows: int, num_blocks: int) -> np.ndarray:
    """Random quantized bytes with harmless scales: every 16-bit word is a small float16."""
    _, block_bytes = GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 256, (num_rows, num_blocks * block_bytes), np.uint8)
    raw[:, 1::2] &= 0x3F
    return raw


def permuted(weight: torch.Tensor, num_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows."""
    halves = weight.view(num_heads, 2, weight.shape[0] // num_heads // 2, -1)
    return halves.transpose(1, 2).reshape(weight.shape).numpy()


def write_model(path: Path, raw: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    arch = str(raw["model_type"])
    writer = GGUFWriter(path, arch)
    writer.add_block_count(raw["num_hidden_layers"])
    writer.add_context_length(raw["max_position_embeddings"])
    writer.add_embedding_length(raw["hidden_size"])
    writer.add_feed_forward_length(raw["intermediate_size"])
    writer.add_head_count(raw["num_attention_heads"])
    writer.add_head_count_kv(raw["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    writer.add_rope_freq_base(raw["rope_theta"])
    writer.add_token_list([f"<{token}>" for token in range(raw["vocab_size"])])
    writer.add_eos_token_id(2)
    heads = {"q_proj": raw["num_attention_heads"], "k_proj": raw["num_key_value_heads"]}
    for name, tensor in tensors.items():
        data = tensor.numpy()
        for part, num_heads in heads.items():
            data = permuted(tensor, num_heads) if part in name and arch == "llama" else data
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, data)
    finish(writer)


@pytest.mark.parametrize("type_name", SUPPORTED_TYPES)
def test_every_supported_type_is_read_as_the_gguf_library_does(tmp_path: Path, type_name: str):
    kind = GGMLQuantizationType[type_name]
    data = random_blocks(kind, num_rows=3, num_blocks=64)
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    is_plain = type_name in ("F32", "F16")
    data = data.view(np.dtype(type_name.lower().replace("f", "float"))) if is_plain else data
    writer.add_tensor("blk.0.ffn_up.weight", data, raw_dtype=kind)
    finish(writer)
    checkpoint = GgufCheckpoint(path)
    name = "model.layers.0.mlp.up_proj.weight"
    expected = quants.dequantize(data, kind)
    assert checkpoint.names() == {name}
    assert checkpoint.shape(name) == expected.shape
    np.testing.assert_array_equal(checkpoint.read(name).float().numpy(), expected)
    checkpoint.close()


def test_an_unsupported_type_is_named(tmp_path: Path):
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    kind = GGMLQuantizationType.Q2_K
    writer.add_tensor("output.weight", random_blocks(kind, 2, 1), raw_dtype=kind)
    finish(writer)
    with pytest.raises(CheckpointError, match=r"output\.weight is of type Q2_K; supported: F32"):
        GgufCheckpoint(path)


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("family", [TINY, TINY_QWEN2], ids=["Llama", "Qwen2"])
def test_a_gguf_model_equals_its_folder(tmp_path: Path, family: dict[str, object], is_tied: bool):
    raw = family | {"tie_word_embeddings": is_tied}
    tensors = random_tensors(ModelConfig.from_hf(raw))
    folder = save_folder(tmp_path / "folder", raw, tensors)
    path = tmp_path / "model.gguf"
    write_model(path, raw, tensors)
    results = []
    for local in (LocalModel(folder, "hf", ""), LocalModel(path, "gguf", "")):
        loaded = load_model(local, ReferenceBackend(), "float32", None, NoProgress())
        results.append(OneSequence(loaded.model, loaded.dtype).logits([1, 2, 3]))
    assert torch.equal(*results)
    assert loaded.defaults.eos_token_ids == (2,)
    assert loaded.config.tie_word_embeddings is is_tied


def test_another_architecture_is_refused_by_name(tmp_path: Path):
    path = tmp_path / "model.gguf"
    finish(GGUFWriter(path, "gemma3"))
    local = LocalModel(path, "gguf", "")
    with pytest.raises(CheckpointError, match=r"gemma3.*supported: LlamaForCausalLM"):
        load_model(local, ReferenceBackend(), "auto", None, NoProgress())


def test_a_file_cut_anywhere_is_refused(tmp_path: Path):
    path = tmp_path / "model.gguf"
    write_model(path, TINY, random_tensors(ModelConfig.from_hf(TINY)))
    whole = path.read_bytes()
    for length in [*range(1, 400, 23), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"model\.gguf"):
            GgufCheckpoint(path)


def test_an_absurd_length_is_refused_without_being_allocated(tmp_path: Path):
    path = tmp_path / "model.gguf"
    head = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little")
    path.write_bytes(head + (2**60).to_bytes(8, "little") + b"key")
    with pytest.raises(CheckpointError, match="the file ends"):
        read_gguf_header(path)


def test_metadata_of_every_type_is_read(tmp_path: Path):
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int64("i64", -5)
    writer.add_float64("f64", 0.5)
    writer.add_bool("yes", True)
    writer.add_string("text", "Grüße")
    writer.add_array("words", ["a", "b"])
    writer.add_array("numbers", [1, -2])
    finish(writer)
    metadata = read_gguf_header(path).metadata
    values = [metadata[key] for key in ("u8", "i64", "f64", "yes", "text", "words", "numbers")]
    assert values == [200, -5, 0.5, True, "Grüße", ["a", "b"], [1, -2]]
