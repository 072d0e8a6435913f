"""A model's own sampling defaults."""

from collections.abc import Mapping

from fabric.core.errors import CheckpointError
from fabric.core.sampling import GenerationDefaults


def generation_defaults(
    generation: Mapping[str, object], *eos_sources: object
) -> GenerationDefaults:
    """Read the defaults from the contents of a generation_config.json.

    As in vLLM, an absent temperature is 1.0, although transformers would then decode greedily;
    only an explicit ``do_sample: false`` means greedy. Keys that aren't there change nothing.

    Args:
        generation: The file's contents; {} where there is none.
        eos_sources: Further end-of-sequence ids (None, an id, or a list), as from config.json
            and the tokenizer; all of them end a sequence.

    Raises:
        CheckpointError: A value isn't a number.
    """
    is_greedy = generation.get("do_sample") is False
    return GenerationDefaults(
        temperature=0.0 if is_greedy else _number(generation, "temperature", 1.0),
        top_k=max(int(_number(generation, "top_k", 0)), 0),
        top_p=_number(generation, "top_p", 1.0),
        min_p=_number(generation, "min_p", 0.0),
        repetition_penalty=_number(generation, "repetition_penalty", 1.0),
        eos_token_ids=_merged_ids(generation.get("eos_token_id"), *eos_sources),
    )


def _merged_ids(*sources: object) -> tuple[int, ...]:
    merged: dict[int, None] = {}
    for source in sources:
        for token in source if isinstance(source, list | tuple) else [source]:
            if isinstance(token, int):
                merged[token] = None
    return tuple(merged)


def _number(generation: Mapping[str, object], key: str, default: float) -> float:
    value = generation.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CheckpointError(f"generation_config.json: {key} is {value!r}, not a number")
    return float(value)
