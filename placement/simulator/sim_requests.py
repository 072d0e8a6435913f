"""A trace's requests, as routers hand them to device groups."""

from collections.abc import Mapping

from fabric.core.request import GenerationRequest, Objectives
from fabric.core.sampling import SamplingParams
from placement.workload.trace import Trace

_NO_OBJECTIVES = Objectives()


class TraceRequests:
    """Makes requests when their time comes: each samples just as many tokens as the trace says."""

    def __init__(self, trace: Trace, objectives: Mapping[str, Objectives]) -> None:
        """Requests of models without ``objectives`` have none."""
        self._names = trace.names
        self._objectives = objectives
        self._models: list[int] = trace.models.tolist()
        self._num_prompt: list[int] = trace.prompt_tokens.tolist()
        self._num_output: list[int] = trace.output_tokens.tolist()
        self._prompts: dict[int, tuple[int, ...]] = {}

    def request(self, index: int) -> GenerationRequest:
        """The trace's request of that number, which is its id.

        A salt lets it share no prefix, so that all prompts can have the same tokens.
        """
        num_prompt = self._num_prompt[index]
        tokens = self._prompts.get(num_prompt)
        if tokens is None:
            tokens = self._prompts[num_prompt] = (0,) * num_prompt
        name, request_id = self._names[self._models[index]], str(index)
        return GenerationRequest(
            request_id,
            name,
            tokens,
            SamplingParams(max_tokens=self._num_output[index], ignore_eos=True),
            cache_salt=request_id,
            objectives=self._objectives.get(name, _NO_OBJECTIVES),
        )
