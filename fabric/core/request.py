"""A request for generation, and the events that answer it."""

from dataclasses import dataclass
from enum import StrEnum

from fabric.core.errors import RequestError
from fabric.core.sampling import GenerationDefaults, RequestLimits, SamplingParams
from fabric.core.weights import WeightState


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Objectives:
    """How fast a request should be served, in seconds after its arrival; None: no objective.

    ``ttft_s``: to the first token, ``tpot_s``: for each one after it, ``e2e_s``: to the last. With
    ``refuse_if_late``, a request that is predicted to miss one is refused instead of served late.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    refuse_if_late: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One generation asked for, tokenized and validated.

    ``timeout_s`` is what was left of the client's deadline when the request was handed over, so
    that no two clocks are compared. ``priority``: lower runs first. Requests with different
    ``cache_salt`` never share prefix-cache blocks. ``expected_tokens`` is the client's guess at
    the length of the output, for where and when the request is served.
    """

    request_id: str
    model: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    timeout_s: float | None = None
    priority: int = 0
    cache_salt: str = ""
    tenant: str = ""
    objectives: Objectives = Objectives()
    expected_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability under the model (before penalties), and its rank from 1."""

    token_id: int
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """Log-probabilities at one output position: the chosen token's, and the most likely."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class StopMatch:
    """What ended a sequence with FinishReason.STOP: a token id, or a stop string."""

    token_id: int | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class SequenceDelta:
    """Tokens of one sequence that became ready together.

    ``first_token`` is the number of the first of them, from 0 within the sequence, so that a
    receiver sees gaps and duplicates. ``text`` may lag behind the tokens (half a character, a
    possible stop string) but is complete when ``finish_reason`` is set.
    """

    index: int
    first_token: int
    token_ids: tuple[int, ...]
    text: str = ""
    logprobs: tuple[PositionLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stop_match: StopMatch | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request, over all of its sequences."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went, in seconds on the device group's clock.

    ``swapped_s`` is the part of it in which its KV was off the device or on its way;
    ``swapped_bytes`` were copied for it, both ways, and ``recomputed_tokens`` computed again.
    In ``load_s`` of the time in the queue its model's weights were not on the device.
    ``group`` names the device group; the router fills it in.
    """

    queue_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    e2e_s: float = 0.0
    num_preemptions: int = 0
    swapped_s: float = 0.0
    swapped_bytes: int = 0
    recomputed_tokens: int = 0
    group: str = ""
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What one engine step did for one request; the last one carries usage, timing or an error."""

    request_id: str
    deltas: tuple[SequenceDelta, ...] = ()
    usage: Usage | None = None
    timing: Timing | None = None
    error: RequestError | None = None

    @property
    def is_last(self) -> bool:
        """Whether the request has ended."""
        return self.usage is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """One model's share of a device group at one moment.

    ``num_queued_tokens`` of prompts wait to be computed, and ``num_running`` requests are on the
    device. Its KV has ``num_slabs``, of which ``num_idle_slabs`` hold nothing but cached prefixes.
    Its weights came to the device ``num_loads`` times, the last time in ``load_s``; ``problem`` is
    why their last move failed, if nothing has come or been asked for since.
    """

    model: str
    state: WeightState = WeightState.RESIDENT
    pinned: bool = False
    num_running: int = 0
    num_waiting: int = 0
    num_queued_tokens: int = 0
    num_slabs: int = 0
    num_idle_slabs: int = 0
    weight_bytes: int = 0
    num_loads: int = 0
    load_s: float = 0.0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A device group's load at one moment; counts of requests, tokens and blocks.

    ``num_steps`` and ``num_tokens`` only grow; together with ``num_running`` and ``num_waiting``
    they show whether the engine makes progress. ``stalled_s`` is how long there has been work
    without progress.

    ``num_swapped`` requests have their KV off the device or on its way; ``num_host_blocks`` and
    ``num_disk_blocks`` hold it. ``swapped_out_bytes`` and ``swapped_in_bytes`` were moved so far,
    ``num_failed_transfers`` ended in recomputation, ``num_recomputed_tokens`` were computed again,
    and in ``stall_s`` nothing could run because of copies under way.

    The last six grow too, and stay 0 for a group of one device: bytes of iterations sent to all
    shard workers, and the driver's seconds for it; then, as the rank that samples sees it, seconds
    in iterations, calls and bytes of its groups' operations, and seconds in these, which wait for
    other ranks.

    ``num_superfluous_tokens`` were computed for sequences that had ended in the meantime.

    Each device has ``num_slabs`` of ``slab_bytes`` for weights and KV of all ``models``; of those
    that KV has, ``fragmented_bytes`` are in no block that anybody holds.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    num_cached_blocks: int = 0
    num_steps: int = 0
    num_tokens: int = 0
    num_preemptions: int = 0
    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0
    stalled_s: float = 0.0
    policy: str = ""
    num_swapped: int = 0
    num_host_blocks: int = 0
    num_disk_blocks: int = 0
    swapped_out_bytes: int = 0
    swapped_in_bytes: int = 0
    num_failed_transfers: int = 0
    num_recomputed_tokens: int = 0
    stall_s: float = 0.0
    control_bytes: int = 0
    control_s: float = 0.0
    execute_s: float = 0.0
    num_collectives: int = 0
    collective_bytes: int = 0
    collective_s: float = 0.0
    models: tuple[ModelLoad, ...] = ()
    slab_bytes: int = 0
    num_slabs: int = 0
    num_free_slabs: int = 0
    fragmented_bytes: int = 0
    num_superfluous_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a router must know of a served model to validate, tokenize and describe it.

    ``tokenizer_path`` is a local file or folder that fabric.models.tokenizer can load, ``dtype``
    what is computed in, and ``quantization`` how weights of linear layers are stored.
    """

    model: str
    tokenizer_path: str
    max_model_len: int
    vocab_size: int
    dtype: str
    architecture: str
    num_parameters: int = 0
    source: str = ""
    quantization: str = "none"


@dataclass(frozen=True, slots=True)
class ServicePace:
    """How long a model's iterations take on its device group: the tables of its profile.

    ``prefill`` and ``decode`` are as in :class:`fabric.core.profile.Profile`; empty: not measured.
    ``load_s`` is what bringing its weights from host memory to the device takes, ``fetch_s`` what
    it takes to bring them there from disk, as far as is known; 0: not known.
    """

    prefill: tuple[tuple[int, float], ...] = ()
    decode: tuple[tuple[int, int, float], ...] = ()
    load_s: float = 0.0
    fetch_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a device group serves: its card, its defaults, and what requests may ask."""

    card: ModelCard
    defaults: GenerationDefaults
    limits: RequestLimits
    pace: ServicePace = ServicePace()
