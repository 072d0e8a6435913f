"""What `fabric demo` shows: several answers streamed at once, then how fast each came."""

import asyncio
import time
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fabric.cli.launch import launched
from fabric.client import AsyncClient, Generation, SequenceDelta
from fabric.config import FabricConfig

PROMPTS = (
    "What is the capital of France?",
    "Write a Python function that reverses a string.",
    "Explain in two sentences why the sky is blue.",
    "Tell me a very short story about a lighthouse keeper.",
    "Name three uses of a paper clip.",
    "Give me one tip for learning to cook.",
)
MAX_TOKENS = 96
REFRESH_PER_S = 12
LINE_CHARS = 74
PANEL_FRAME_CHARS = 4


@dataclass(slots=True)
class Answer:
    """One prompt's answer as it arrives; times are seconds on the client's clock."""

    number: int
    prompt: str
    text: str = ""
    num_printed: int = 0
    started_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    generation: Generation | None = None

    def next_line(self) -> str | None:
        """A line's worth of text that was not printed yet, or None."""
        rest = self.text[self.num_printed :]
        is_over = self.generation is not None
        newline = rest.find("\n")
        if 0 <= newline <= LINE_CHARS:
            length = newline + 1
        elif len(rest) > LINE_CHARS:
            length = rest.rfind(" ", 0, LINE_CHARS) + 1 or LINE_CHARS
        else:
            length = len(rest) if is_over else 0
        self.num_printed += length
        return rest[:length].rstrip() if length else None


def show(config: FabricConfig) -> None:
    """Start the configured fabric, stream the answers to PROMPTS, and end the fabric.

    Raises:
        StartError: The fabric could not be started.
        RequestError: The first request that failed.
    """
    console = Console()
    answers = [Answer(number, prompt) for number, prompt in enumerate(PROMPTS, start=1)]
    model = config.models[0].id
    with launched(config, console) as target:
        console.print(f"\n{model} answers {len(answers)} chats at once, through {target}:\n")
        for answer in answers:
            console.print(f"[{answer.number}] {answer.prompt}", markup=False, style="bold")
        console.print()
        try:
            asyncio.run(_stream_all(target, model, answers, console))
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
    console.print(_summary(answers))


async def _stream_all(target: str, model: str, answers: list[Answer], console: Console) -> None:
    async with AsyncClient(target) as client, asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(_stream(client, model, answer)) for answer in answers]
        tasks.create_task(_display(streams, answers, console))


async def _stream(client: AsyncClient, model: str, answer: Answer) -> None:
    chat = [{"role": "user", "content": answer.prompt}]
    answer.started_s = time.perf_counter()
    async with client.stream(model, chat, max_tokens=MAX_TOKENS, temperature=0.0) as stream:
        async for event in stream:
            if isinstance(event, SequenceDelta):
                answer.text += event.text
                answer.arrivals_s.extend([time.perf_counter()] * len(event.token_ids))
        answer.generation = stream.result


async def _display(
    streams: list[asyncio.Task[None]], answers: list[Answer], console: Console
) -> None:
    """Redraw all answers in their panels on a terminal; print them line by line elsewhere."""
    if not console.is_terminal:
        while any(not stream.done() for stream in streams):
            _print_lines(answers, console)
            await asyncio.sleep(1 / REFRESH_PER_S)
        _print_lines(answers, console)
        return
    # All answers must fit the screen while they grow: two lines of each panel are its frame.
    num_lines = max(1, console.height // len(answers) - 2)
    with Live(console=console, auto_refresh=False) as live:
        while any(not stream.done() for stream in streams):
            bodies = [_last_lines(answer.text, num_lines, console) for answer in answers]
            live.update(_panels(answers, bodies), refresh=True)
            await asyncio.sleep(1 / REFRESH_PER_S)
        live.update(_panels(answers, [Text(answer.text) for answer in answers]), refresh=True)


def _print_lines(answers: list[Answer], console: Console) -> None:
    for answer in answers:
        while (line := answer.next_line()) is not None:
            if line:
                console.print(f"[{answer.number}] {line}", markup=False, highlight=False)


def _last_lines(text: str, num_lines: int, console: Console) -> Text:
    lines = Text(text).wrap(console, console.width - PANEL_FRAME_CHARS)
    return Text("\n").join(lines[-num_lines:])


def _panels(answers: list[Answer], bodies: list[Text]) -> Group:
    return Group(
        *(
            Panel(body, title=f"{answer.number}. {answer.prompt}", title_align="left")
            for answer, body in zip(answers, bodies, strict=True)
        )
    )


def _summary(answers: list[Answer]) -> Table:
    table = Table(title="Measured by the client")
    for name in ("request", "prompt tokens", "output tokens", "TTFT ms", "TPOT ms", "tokens/s"):
        table.add_column(name, justify="right")
    table.add_column("finish")
    for answer in answers:
        generation, arrivals = answer.generation, answer.arrivals_s
        assert generation is not None
        decode_s = arrivals[-1] - arrivals[0]
        tpot_s = decode_s / max(1, len(arrivals) - 1)
        table.add_row(
            str(answer.number),
            str(generation.usage.prompt_tokens),
            str(generation.usage.completion_tokens),
            f"{1e3 * (arrivals[0] - answer.started_s):.0f}",
            f"{1e3 * tpot_s:.1f}",
            f"{len(arrivals) / (arrivals[-1] - answer.started_s):.1f}",
            str(generation.sequences[0].finish_reason),
        )
    return table
