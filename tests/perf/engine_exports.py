"""Checkpoints in the formats of other engines, converted by their own tools; kept once made."""

import json
import os
import subprocess
from pathlib import Path

import torch
from engine_models import Model, is_whole
from transformers_twin import twin_of

from fabric.models.gguf_header import read_gguf_header
from fabric.models.gguf_tokenizer import gguf_special_ids, gguf_tokenizer
from fabric.models.sources import LocalModel

# The elements that share a scale unless it is told otherwise.
OPENVINO_GROUP = 128
CONVERTED_TYPES = ("f32", "bf16")
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def export_folder(model: Model) -> Path:
    """The model as a Hugging Face folder in bfloat16."""
    if is_whole(model.folder):
        return model.folder
    local = LocalModel(model.source, "gguf", model.name)
    twin_of(local, model.config, torch.bfloat16).save_pretrained(model.folder)
    metadata = read_gguf_header(model.source).metadata
    vocabulary = gguf_tokenizer(metadata)
    vocabulary.save(str(model.folder / "tokenizer.json"))
    bos, eos = gguf_special_ids(metadata)
    tokens = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None if bos is None else vocabulary.id_to_token(bos),
        "eos_token": vocabulary.id_to_token(eos[0]) if eos else None,
    }
    (model.folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return model.folder


def export_openvino(model: Model, weights: str, peers: Path) -> Path:
    """OpenVINO's representation with weights of a format.

    Raises:
        CalledProcessError: Its tool failed, and has said why.
    """
    folder = model.folder.with_name(f"ov-{model.name}-{weights}")
    if not (folder / "openvino_model.bin").is_file():
        tool = peers / "venvs/openvino/bin/optimum-cli"
        task = ["--task", "text-generation-with-past", "--weight-format", weights]
        if weights == "int4" and model.config.hidden_size % OPENVINO_GROUP:
            task += ["--group-size", str(OPENVINO_GROUP // 2)]
        source = str(export_folder(model))
        _run([str(tool), "export", "openvino", "-m", source, *task, str(folder)])
    return folder


def export_gguf(model: Model, kind: str, peers: Path) -> Path:
    """A GGUF file whose matrices are of a type.

    Raises:
        CalledProcessError: llama.cpp's tools failed, and have said why.
        FileNotFoundError: Its sources are not there.
    """
    path = model.folder.with_name(f"{model.name}-{kind}.gguf")
    if path.is_file():
        return path
    made = path.with_suffix(".part")
    quantize = [str(peers / "build-llama/bin/llama-quantize"), "--allow-requantize"]
    if model.source.suffix == ".gguf":
        _run([*quantize, str(model.source), str(made), kind.upper(), "2"])
    elif kind in CONVERTED_TYPES:
        converter = next(peers.glob("src/*/llama.cpp/convert_hf_to_gguf.py"), None)
        if converter is None:
            raise FileNotFoundError(f"{peers} has no sources of llama.cpp; run peers/set_up.sh")
        python = str(peers / "venvs/base/bin/python")
        source = [str(model.folder), "--outtype", kind, "--outfile", str(made)]
        _run([python, str(converter), *source])
    else:
        whole = export_gguf(model, "bf16", peers)
        _run([*quantize, str(whole), str(made), kind.upper(), "2"])
    made.rename(path)
    return path


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | OFFLINE)
