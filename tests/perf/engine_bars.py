"""The engine's bars, computed from what one run has measured; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from machine import verdict

Rounds = Mapping[str, Sequence[float]]

BIG, SMALL = "llama-1b1", "llama-160m"
OWN = "fabric:"
DECODE, PREFILL = ("decode_128", "decode_1024"), ("prefill_512", "prefill_2048")


@dataclass(frozen=True)
class Pairing:
    """Our rounds and a peer's, interleaved: each figure's tokens per second."""

    peer: str
    ours: Rounds
    theirs: Rounds

    def ratio(self, figure: str) -> float | None:
        """How many times as fast as the peer we are; None: it was not measured."""
        if not self.ours.get(figure) or not self.theirs.get(figure):
            return None
        return median(self.ours[figure]) / median(self.theirs[figure])


@dataclass(frozen=True)
class Measured:
    """What a run says of one model: our rounds, what limits them, and each peer's beside ours.

    ``limits`` are tokens per second that the machine allows, ``shares`` what decodes reached of
    the rate of reads between their steps.
    """

    model: str
    dtype: str
    quantization: str
    ours: Rounds
    limits: Mapping[str, float]
    shares: Rounds = field(default_factory=dict)
    startups_s: Sequence[float] = ()
    peak_bytes: int = 0
    weight_bytes: int = 0
    kv_pool_bytes: int = 0
    pairings: Sequence[Pairing] = field(default_factory=tuple)

    def share(self, figure: str) -> float:
        """Our part of what the machine allows, as probed before each round."""
        return median(self.ours[figure]) / self.limits[figure]

    def over(self, figure: str, prefix: str) -> float | None:
        """Our smallest ratio to the peers of a name, our own other engines not among them."""
        ratios = [
            ratio
            for pairing in self.pairings
            if pairing.peer.startswith(prefix)
            and (prefix or not pairing.peer.startswith(OWN))
            and (ratio := pairing.ratio(figure)) is not None
        ]
        return min(ratios, default=None)


@dataclass(frozen=True)
class Bar:
    """A measured value that is to reach a target, or to stay below it."""

    name: str
    value: float
    target: float
    at_most: bool = False

    def __str__(self) -> str:
        is_met = self.value <= self.target if self.at_most else self.value >= self.target
        return f"BAR {self.name} {self.value:.3g} {self.target:g} {verdict(is_met)}"


def bars_of(measured: Measured) -> list[Bar]:
    """The bars that one model's figures answer."""
    kind = measured.dtype if measured.quantization == "none" else measured.quantization
    found: list[Bar] = []
    if measured.model == BIG:
        found += _big_bars(measured, kind)
    if measured.model == SMALL and kind == "bfloat16":
        found += _over(measured, DECODE, "160m_{}_over_openvino", "openvino", 1.1)
    return found + _footprint(measured, kind)


def _big_bars(measured: Measured, kind: str) -> list[Bar]:
    if kind == "int8":
        name = "int8_{}_over_llamacpp_q8_0"
        short = _over(measured, DECODE[:1], name, "llamacpp:q8_0", 1.15)
        return short + _over(measured, DECODE[1:], name, "llamacpp:q8_0", 1.5)
    if kind == "int4":
        return _over(measured, DECODE, "int4_{}_over_int8", "fabric:int8", 1.5)
    if kind != "bfloat16":
        return []
    shares = [
        Bar(f"{figure}_share_of_bandwidth", measured.share(figure), 0.85)
        for figure in DECODE
        if measured.ours.get(figure)
    ]
    shares += [
        Bar(f"{figure}_share_of_bandwidth_meanwhile", median(paired), 0.85)
        for figure, paired in measured.shares.items()
    ]
    return [
        *_over(measured, DECODE, "{}_over_best_peer", "", 1.2),
        *shares,
        *_over(measured, (*PREFILL, "batch"), "{}_over_best_peer", "", 1.5),
    ]


def _over(
    measured: Measured, figures: Sequence[str], name: str, prefix: str, target: float
) -> list[Bar]:
    return [
        Bar(name.format(figure), ratio, target)
        for figure in figures
        if (ratio := measured.over(figure, prefix)) is not None
    ]


def _footprint(measured: Measured, kind: str) -> list[Bar]:
    model = "" if measured.model == BIG else measured.model.removeprefix("llama-") + "_"
    prefix = model + ("" if kind == "bfloat16" else f"{kind}_")
    found = []
    if measured.startups_s:
        found.append(Bar(f"{prefix}startup_s", median(measured.startups_s), 5.0, at_most=True))
    # Only the batch fills the KV pool, which the bar allows.
    if measured.peak_bytes and measured.ours.get("batch"):
        beside_kv = measured.peak_bytes - measured.kv_pool_bytes
        times = beside_kv / measured.weight_bytes
        found.append(Bar(f"{prefix}peak_memory_over_weights", times, 1.5, at_most=True))
    return found
