"""What it takes to hand activations from one pipeline stage to the next."""

from collections.abc import Sequence
from dataclasses import dataclass

from placement.devices import Link
from placement.parallelize.stage import Phase
from placement.shape import ModelShape

ACTIVATION_BYTES = 2


@dataclass(frozen=True, slots=True)
class Transfer:
    """Seconds of a message between stages: of each phase, and the phases' weighted sum.

    Without phases it is for nothing.
    """

    phase_s: tuple[float, ...] = ()
    seconds: float = 0.0


FREE = Transfer()


def activation_transfer(shape: ModelShape, phases: Sequence[Phase], link: Link) -> Transfer:
    """One stage's output over a link: each new token's hidden state in 16 bits.

    Every device of a stage gets all of it at once from its counterpart, as tensor parallelism
    leaves the hidden state whole on each device.

    Source: Megatron-LM (Narayanan et al., SC 2021), section 3.2.
    """
    token_bytes = shape.hidden_size * ACTIVATION_BYTES
    phase_s = tuple(
        link.latency_s + phase.num_tokens * token_bytes / link.bytes_per_s for phase in phases
    )
    weighted = (phase.weight * each for phase, each in zip(phases, phase_s, strict=True))
    return Transfer(phase_s, sum(weighted))
