"""Drives executors of several models as a scheduler would, without one: greedy, and interleaved."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from fabric.core.sampling import SamplingParams
from fabric.core.weights import WeightMove, WeightOrder, WeightResult
from fabric.engine.executor import Finished, ReadyExecutor
from fabric.engine.settings import EngineSettings, ModelSettings, WorkerSettings
from fabric.kv.transfer import WorkerOrders
from fabric.models.config import ModelConfig
from fabric.scheduler.output import NewSequence, ScheduledSequence, SchedulerOutput, StepResult
from fabric.scheduler.settings import SchedulerConfig
from tests.unit.tiny_models import TINY, random_tensors, save_folder

BLOCK_SIZE = 4
TIMEOUT_S = 20.0
GREEDY = SamplingParams(max_tokens=1000, temperature=0.0, ignore_eos=True)
# Cut evenly by two tensor ranks or two stages.
SMALL = TINY | {"num_attention_heads": 4, "num_key_value_heads": 2}

Prompts = Sequence[Sequence[int]]
Tokens = list[list[int]]


def small_model(folder: Path) -> Path:
    """A folder with a Llama of random weights, with other blocks than stories260K."""
    return save_folder(folder, SMALL, random_tensors(ModelConfig.from_hf(SMALL)))


def settings_of(models: Mapping[str, Path], folder: Path, **changes: object) -> EngineSettings:
    """An engine over these models; ``folder`` keeps its weights in host memory."""
    hosted = tuple(
        ModelSettings(model=name, source=str(path), dtype="float32")
        for name, path in models.items()
    )
    worker = WorkerSettings(
        models=hosted,
        cache_dir=folder,
        host_weight_dir=folder / "weights",
        kv_cache_bytes=2**20,
        slab_bytes=2**16,
        block_size=BLOCK_SIZE,
        num_threads=1,
    )
    changed = replace(worker, **changes)  # type: ignore[arg-type]
    return EngineSettings(worker=changed, scheduler=SchedulerConfig(max_num_seqs=8))


@dataclass
class Running:
    """A sequence: its tokens so far, how many have KV, and its blocks."""

    key: int
    tokens: list[int]
    num_prompt: int
    blocks: Iterator[int]
    num_computed: int = 0
    num_blocks: int = 0
    new_tokens: tuple[int, ...] = ()

    def next_blocks(self) -> tuple[int, ...]:
        """The blocks that it needs and has not yet got."""
        missing = -(-len(self.tokens) // BLOCK_SIZE) - self.num_blocks
        self.num_blocks += missing
        return tuple(next(self.blocks) for _ in range(missing))


@dataclass
class Driver:
    """An executor that gets every order from a test; slabs go to models by turns."""

    executor: ReadyExecutor
    numbers: Iterator[int] = field(default_factory=count)
    keys: Iterator[int] = field(default_factory=count)
    steps: Iterator[int] = field(default_factory=count)

    def order(self, move: WeightMove, model: int) -> int:
        """Order a move of weights; return its number."""
        order = WeightOrder(next(self.numbers), model, move)
        self.executor.move(WorkerOrders(weights=(order,)))
        return order.number

    def wait(self, number: int) -> WeightResult:
        """The last result of a move of weights."""
        while True:
            for result in self.take():
                if result.number == number and isinstance(result, WeightResult) and result.is_last:
                    return result

    def take(self) -> list[Finished]:
        """What is finished, but at least something."""
        finished = self.executor.take_finished(TIMEOUT_S)
        assert finished, "nothing is finished in time"
        return finished

    def load(self, *models: int) -> None:
        """Bring weights to the device, and wait until they are there."""
        for model in models:
            result = self.wait(self.order(WeightMove.LOAD, model))
            assert not result.error
            assert result.num_bytes >= self.executor.models[model].weight_bytes

    def generate(self, prompts: Mapping[int, Prompts], num_tokens: int) -> dict[int, Tokens]:
        """Batches of all models by turns, as many in flight as there may be; then forget all."""
        running = {model: self._begin(model, each) for model, each in prompts.items()}
        flying: list[int] = []
        for _ in range(num_tokens):
            for model, sequences in running.items():
                # What a model samples must be known before it goes on.
                while model in flying or len(flying) == self.executor.num_batches:
                    self._finish(running[flying.pop(0)])
                self.executor.submit(self._iteration(model, sequences))
                flying.append(model)
        for model in flying:
            self._finish(running[model])
        for model, sequences in running.items():
            self._forget(model, sequences)
        return {
            model: [sequence.tokens[sequence.num_prompt :] for sequence in sequences]
            for model, sequences in running.items()
        }

    def _begin(self, model: int, prompts: Prompts) -> list[Running]:
        blocks = self._blocks(model)
        return [Running(next(self.keys), list(p), len(p), blocks) for p in prompts]

    def _blocks(self, model: int) -> Iterator[int]:
        """Block ids of every slab that is this model's turn, but the last ones of a slab first."""
        memory = self.executor.memory
        size = memory.blocks_per_slab[model]
        for slab in range(model, memory.num_slabs, len(self.executor.models)):
            yield from reversed(range(slab * size, (slab + 1) * size))

    def _iteration(self, model: int, sequences: Sequence[Running]) -> SchedulerOutput:
        new, scheduled = [], []
        for sequence in sequences:
            blocks, num_new = sequence.next_blocks(), len(sequence.tokens) - sequence.num_computed
            if not sequence.num_computed:
                prompt = tuple(sequence.tokens)
                new.append(NewSequence(sequence.key, 0, prompt, len(prompt), GREEDY, blocks))
                blocks = ()
            item = ScheduledSequence(sequence.key, sequence.num_computed, num_new, 1, blocks)
            item.new_token_ids = sequence.new_tokens
            scheduled.append(item)
            sequence.num_computed += num_new
        return SchedulerOutput(next(self.steps), tuple(scheduled), tuple(new), model=model)

    def _finish(self, sequences: Sequence[Running]) -> None:
        result: StepResult = self.executor.collect()
        sampled = {item.key: item.token_ids for item in result.sampled}
        for sequence in sequences:
            sequence.new_tokens = sampled[sequence.key]
            sequence.tokens.extend(sequence.new_tokens)

    def _forget(self, model: int, sequences: Sequence[Running]) -> None:
        released = tuple(sequence.key for sequence in sequences)
        self.executor.submit(SchedulerOutput(next(self.steps), (), released=released, model=model))
        self.executor.collect()
