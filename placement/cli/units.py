"""Numbers as people read them."""

import math

MISSING = "-"


def seconds(value: float) -> str:
    """Three figures, in the unit that suits them."""
    if not math.isfinite(value):
        return MISSING
    if value >= 1.0 or value == 0.0:
        return f"{_figures(value)} s"
    return f"{_figures(value * 1e3)} ms" if value >= 1e-3 else f"{_figures(value * 1e6)} us"


def gibibytes(num_bytes: float) -> str:
    """Bytes in GiB, without the unit."""
    return f"{num_bytes / 2**30:.1f}"


def percent(share: float) -> str:
    """A share of 1 with one decimal: two shares that differ by a thousandth look different."""
    return f"{100 * share:.1f}%" if math.isfinite(share) else MISSING


def number(value: float) -> str:
    """A number with as many figures as it needs, up to three after the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _figures(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
