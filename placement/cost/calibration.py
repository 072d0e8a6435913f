"""How far devices stay behind their data sheets."""

from dataclasses import dataclass, fields

from fabric.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Calibration:
    """Constants of one device type.

    The efficiencies are the shares of the data sheet's rates that matrices, memory and links
    reach. ``layer_s`` passes in each layer whatever its work is (launches of kernels, ranks
    waiting for each other), ``sequence_s`` for each token that is sampled, and ``iteration_s`` in
    each iteration besides.
    """

    matrix_efficiency: float = 0.6
    memory_efficiency: float = 0.9
    link_efficiency: float = 0.5
    layer_s: float = 50e-6
    sequence_s: float = 20e-6
    iteration_s: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_share = field.name.endswith("efficiency")
            if not (0 < value <= 1 if is_share else 0 <= value < 1):
                allowed = "above 0 and at most 1" if is_share else "from 0 to 1 second"
                raise ConfigError(f"calibration.{field.name} is {value}; it must be {allowed}")
