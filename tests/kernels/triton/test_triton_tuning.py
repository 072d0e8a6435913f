import torch

from kernels.triton.configs import interpreter_config
from kernels.triton.tuning import Tuner, TuningSizes

SIZES = TuningSizes(((32, 48),), 4, 2, 16, block_size=8, num_seqs=2, context_len=40)


def test_the_fastest_stages_are_chosen_and_what_makes_bits_stays(device: torch.device) -> None:
    config = interpreter_config()
    times = iter(range(100, 0, -1))

    tuned = Tuner(SIZES, torch.float32, device, lambda call: next(times)).tune(config)

    # The last one measured is the fastest.
    assert tuned.attention[16, False].num_stages == 5
    assert [(cut.num_warps, cut.num_stages) for cut in tuned.linear[False]] == [(8, 5), (8, 5)]
    assert tuned.linear[True] == config.linear[True]
    before, after = config.attention[16, False], tuned.attention[16, False]
    assert (before.rows, before.tile, before.split) == (after.rows, after.tile, after.split)
