"""Groups as a router sees them, with paces that are easy to reckon with."""

from fabric.core.request import (
    GenerationRequest,
    LoadReport,
    ModelCard,
    ModelLoad,
    ServedModel,
    ServicePace,
)
from fabric.core.sampling import GenerationDefaults, RequestLimits, SamplingParams
from fabric.core.weights import WeightState
from fabric.router.forecast import Demand, GroupView, ModelPace, ModelWork
from fabric.router.routing import ReadyGroup

# A prompt token takes a millisecond; an iteration 10 ms, and 1 ms more for each sequence more.
PREFILL = ((1, 0.001), (1000, 1.0))
DECODE = ((1, 1, 0.010), (101, 1, 0.110))
PACE = ServicePace(PREFILL, DECODE, load_s=2.0, fetch_s=5.0)


def served(model: str, pace: ServicePace = PACE) -> ServedModel:
    card = ModelCard(model, "", 4096, 512, "float32", "LlamaForCausalLM")
    return ServedModel(card, GenerationDefaults(), RequestLimits(4096, 512), pace)


def work(num_requests: int, *, queued: int = 0, prompt: int = 0, output: int = 0) -> ModelWork:
    """Work of sequences whose context doesn't matter."""
    return ModelWork(num_requests, num_requests, queued, prompt, output, 0)


def view(work_: dict[str, ModelWork] | None = None, *loads: ModelLoad, **fields) -> GroupView:
    paces = {model: ModelPace.of(PACE) for model in ("a", "b", "c")}
    return GroupView("left", work_ or {}, LoadReport(models=loads), **{"paces": paces} | fields)


def demand(prompt: int = 100, output: int = 11, model: str = "a") -> Demand:
    return Demand(model, prompt, output)


def ready(
    name: str, state: WeightState = WeightState.RESIDENT, pace: ServicePace = PACE, **load
) -> ReadyGroup:
    """A group that hosts the model ``a``, its weights in a state."""
    return ReadyGroup(
        name, (served("a", pace),), LoadReport(models=(ModelLoad("a", state, **load),))
    )


def request(token_ids: tuple[int, ...] = (1,) * 100, **fields) -> GenerationRequest:
    max_tokens = fields.pop("max_tokens", 11)
    return GenerationRequest("id", "a", token_ids, SamplingParams(max_tokens=max_tokens), **fields)
