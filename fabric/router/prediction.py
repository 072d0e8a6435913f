"""When a request would be served by a group, reckoned from measured times; no clock, no I/O."""

from collections.abc import Iterator
from dataclasses import dataclass

from fabric.core.profile import Profile
from fabric.core.request import LoadReport, ModelLoad
from fabric.core.weights import WeightState
from fabric.router.forecast import Demand, Forecast, GroupView, ModelPace, ModelWork
from fabric.scheduler.settings import FairnessConfig

# What is left of an output that another router asked for: nobody tells us.
FOREIGN_OUTPUT_TOKENS = 64
# What one model may be served beyond another by a group's scheduler (FairnessConfig.lag_s).
SHARE_LAG_S = FairnessConfig().lag_s or 0.0
# With fewer of its blocks free than this, a model alone has no memory for another sequence.
SHORT_SHARE = 0.05


def predict(demand: Demand, view: GroupView) -> Forecast | None:
    """When the group would serve the request; None if its model has not been measured there.

    Before its first token come the prompts of its own model that wait already, its own prompt,
    and the iteration under way; where the batch is full, the iterations until enough sequences
    have ended. Each token after it takes an iteration at the batch that the request then finds.
    Devices are shared: meanwhile every other model is served as long, and ``SHARE_LAG_S`` longer,
    unless it has less to do; what it does during a load doesn't count.

    A router knows its own requests better than the group's report, which is late, and doesn't
    know those of other routers, which only the report shows. Both count the same requests, so
    that their sum would count ours twice: the larger one stands. That is too little only where
    others' requests came in the last report's interval, and never too much.

    Source: AlpaServe (Li et al., OSDI 2023), runtime scheduling, sends to the shortest queue;
    this is the same with lengths in seconds, since requests differ in length here.
    """
    pace = view.paces.get(demand.model)
    if pace is None or pace.profile is None:
        return None
    profile, mine = pace.profile, _Ahead()
    load_s, others = 0.0, []
    for model, ahead, state in _work_ahead(view):
        if model == demand.model:
            mine, load_s = ahead, pace.start_s(state)
        elif ahead.num_sequences:
            theirs = view.paces.get(model)
            # One that was not measured is taken to be as fast as ours.
            others.append(ahead.remaining_s(theirs if theirs and theirs.profile else pace))
    first_s = mine.wait_s(demand.num_sequences, pace) + profile.prefill_s(demand.num_prompt_tokens)
    step_s = _step_s(demand, mine, pace)
    num_steps = demand.num_output_tokens - 1
    before_s = _shared(first_s, others, load_s)
    ttft_s = load_s + view.ratio * before_s
    tpot_s = view.step_ratio * step_s
    if num_steps > 0:
        all_s = _shared(first_s + num_steps * step_s, others, load_s)
        tpot_s = view.step_ratio * (all_s - before_s) / num_steps
    e2e_s = ttft_s + num_steps * tpot_s
    return Forecast(ttft_s, tpot_s, e2e_s, load_s, view.ratio, view.step_ratio)


@dataclass(slots=True)
class _Ahead:
    """One model's work on a group, of all routers, as far as it can be told."""

    num_sequences: int = 0
    num_running: int = 0
    num_queued: int = 0
    prompt_tokens: int = 0
    output_tokens: float = 0.0
    context: int = 0
    is_short: bool = False

    def wait_s(self, num_sequences: int, pace: ModelPace) -> float:
        """Seconds until so many sequences more find their prompts next and room in the batch.

        Sequences end as evenly as their tokens come: a batch of n with t tokens to go loses one
        about every t / n² iterations.
        """
        profile, count = pace.profile, self.num_sequences
        assert profile is not None
        if not count:
            return 0.0
        width = self.room(pace)
        num_ending = count + num_sequences - width
        steps = 1.0
        if num_ending > 0:
            share = min(1.0, num_ending / count)
            steps = max(steps, share * self.output_tokens / min(count, width))
        waited_s = steps * profile.decode_s(min(count, width), self.context)
        return self._prefill_s(profile) + waited_s

    def remaining_s(self, pace: ModelPace) -> float:
        """Seconds until all of it is done, if nothing else runs."""
        assert pace.profile is not None
        width = min(self.num_sequences, self.room(pace))
        steps = self.output_tokens / width
        return self._prefill_s(pace.profile) + steps * pace.profile.decode_s(width, self.context)

    def room(self, pace: ModelPace) -> int:
        """The largest batch: more than was measured if more are seen to run.

        Where memory is short, no more than run now.
        """
        return max(1 if self.is_short else pace.max_batch, self.num_running)

    def _prefill_s(self, profile: Profile) -> float:
        """Seconds to compute the prompts that wait, taken to be equally long."""
        if not self.prompt_tokens:
            return 0.0
        count = max(1, self.num_queued)
        return count * profile.prefill_s(self.prompt_tokens // count)


def _work_ahead(view: GroupView) -> Iterator[tuple[str, _Ahead, WeightState]]:
    loads = view.report.models or _only_model(view)
    for load in loads:
        ahead = _larger(view.work.get(load.model), load)
        ahead.is_short = _is_short(view.report, load)
        yield load.model, ahead, load.state
    for model, work in view.work.items():
        if work.num_requests and not any(load.model == model for load in loads):
            yield model, _larger(work, ModelLoad(model)), WeightState.RESIDENT


def _only_model(view: GroupView) -> tuple[ModelLoad, ...]:
    """The load of a group that doesn't tell its models apart; only clear if there is one."""
    if len(view.paces) != 1:
        return ()
    report = view.report
    (model,) = view.paces
    return (ModelLoad(model, num_running=report.num_running, num_waiting=report.num_waiting),)


def _is_short(report: LoadReport, load: ModelLoad) -> bool:
    """Whether the model's sequences wait because no memory is left for their KV."""
    if not load.num_waiting or not report.num_blocks:
        return False
    if len(report.models) > 1:
        num_idle = sum(model.num_idle_slabs for model in report.models)
        return report.num_free_slabs + num_idle == 0
    return report.num_free_blocks < SHORT_SHARE * report.num_blocks


def _larger(work: ModelWork | None, load: ModelLoad) -> _Ahead:
    reported = load.num_running + load.num_waiting
    if work is None or not work.num_sequences:
        left = float(reported * FOREIGN_OUTPUT_TOKENS)
        return _Ahead(reported, load.num_running, load.num_waiting, load.num_queued_tokens, left)
    ours = work.num_sequences
    count = max(ours, reported)
    return _Ahead(
        count,
        load.num_running,
        max(work.num_queued, load.num_waiting),
        max(work.prompt_tokens, load.num_queued_tokens),
        work.output_tokens * count / ours,
        work.context_tokens // ours,
    )


def _step_s(demand: Demand, mine: _Ahead, pace: ModelPace) -> float:
    """Seconds of an iteration with the request in it, half-way through its output."""
    assert pace.profile is not None
    own = demand.num_prompt_tokens + demand.num_output_tokens // 2
    count = mine.num_sequences + demand.num_sequences
    context = (mine.context * mine.num_sequences + own * demand.num_sequences) // count
    return pace.profile.decode_s(min(count, mine.room(pace)), context)


def _shared(own_s: float, others: list[float], load_s: float) -> float:
    """Seconds until a model has been served for ``own_s`` beside others, which go on meanwhile."""
    allowed_s = own_s + SHARE_LAG_S
    return own_s + sum(min(max(0.0, left_s - load_s), allowed_s) for left_s in others)
