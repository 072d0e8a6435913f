"""A planner's input as the search takes it, and as both simulators judge what it finds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from placement.config.schema import PlanInput
from placement.groups import Group, Placement
from placement.planning.draws import held_out_traces, training_trace
from placement.planning.service_times import kind_requests, service_times
from placement.planning.situation import Situation, situation_of
from placement.search.problem import Problem
from placement.simulator.request_level import RequestSimulator
from placement.workload.kinds import kinds_of
from placement.workload.trace import Trace
from placement.workload.windows import cut


@dataclass(frozen=True, eq=False)
class Planning:
    """An input, looked up and drawn: what to train on and what to judge by.

    Requests longer than their model's limit are cut to it; ``num_cut`` of the training ones were.
    """

    situation: Situation
    training: Trace
    held_out: tuple[Trace, ...]
    num_cut: int

    @cached_property
    def problem(self) -> Problem:
        """What the search is asked, by the training requests."""
        return self.problem_of(self.training)

    def problem_of(self, trace: Trace) -> Problem:
        """What the search would be asked if these were the requests to come."""
        situation, kinds = self.situation, kinds_of(trace)
        requests = kind_requests(situation.models, kinds)
        times = service_times(
            situation.costs, situation.configs, situation.models, kinds, situation.limits
        )
        return Problem(requests, times, situation.config_types, situation.inventory.counts)

    @cached_property
    def held_out_problems(self) -> tuple[Problem, ...]:
        """The same of each of the held-out traces."""
        return tuple(self.problem_of(trace) for trace in self.held_out)

    def placement(self, groups: Sequence[Group]) -> Placement:
        """Groups of a search with the names of what their numbers stand for."""
        return Placement(self.situation.configs, self.situation.names, tuple(groups))

    def held_out_attainment(self, groups: Sequence[Group]) -> list[float]:
        """Request-level attainment of each held-out trace."""
        return [
            RequestSimulator(problem.requests, problem.times).score(groups).attainment
            for problem in self.held_out_problems
        ]


def planning_of(inputs: PlanInput) -> Planning:
    """Draw an input's requests and look everything up.

    Raises:
        ConfigError: Something that the input names isn't known, can't be read, or fits nowhere.
    """
    drawn = training_trace(inputs)
    situation = situation_of(inputs, drawn)
    limits = np.array([model.demands.max_model_len for model in situation.models])
    training = _first(_within(drawn, limits), inputs.search.num_requests)
    held_out = tuple(_within(trace, limits) for trace in held_out_traces(inputs))
    num_cut = int(np.count_nonzero(_total(drawn) > limits[drawn.models]))
    return Planning(situation, training, held_out, num_cut)


def _first(trace: Trace, num_requests: int) -> Trace:
    """The trace until it has so many requests."""
    if len(trace) <= num_requests:
        return trace
    return cut(trace, 0.0, float(trace.arrivals_s[num_requests]))


def _total(trace: Trace) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return trace.prompt_tokens.astype(np.int64) + trace.output_tokens


def _within(trace: Trace, limits: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Trace:
    """The trace with lengths that models can have: outputs, then prompts, are cut."""
    longest = limits[trace.models]
    outputs = np.minimum(trace.output_tokens, np.maximum(1, longest // 2))
    outputs = np.maximum(outputs, np.minimum(trace.output_tokens, longest - trace.prompt_tokens))
    prompts = np.maximum(1, np.minimum(trace.prompt_tokens, longest - outputs))
    return replace(
        trace, prompt_tokens=prompts.astype(np.int32), output_tokens=outputs.astype(np.int32)
    )
