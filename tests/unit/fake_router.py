"""A router without models: it plays scripted answers over a real grpc.aio socket."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import grpc
import grpc.aio
from google.protobuf import wrappers_pb2

from fabric.client.assembly import Assembly
from fabric.core.errors import RequestError
from fabric.core.generation import Completed, Started, StreamEvent
from fabric.core.prompt import GenerationSpec, PromptTokens
from fabric.core.request import FinishReason, ModelLoad, SequenceDelta, Timing, Usage
from fabric.core.status import Explanation, PolicyChange, RequestPhase, RequestStatus, Residence
from fabric.core.weights import WeightState
from fabric.rpc.convert import spec_from_proto
from fabric.rpc.convert_output import event_to_proto, generation_to_proto
from fabric.rpc.convert_requests import change_to_proto, explanation_to_proto
from fabric.rpc.convert_weights import model_load_to_proto, residence_to_proto, wanted_state
from fabric.rpc.status import to_status
from fabric.rpc.v1 import control_pb2, control_pb2_grpc, inference_pb2, inference_pb2_grpc

HANG = "hang"
Item = StreamEvent | RequestError | str
STARTED = Started("request-1", "tiny", 3, 7)
TIMING = Timing(ttft_s=0.5, num_preemptions=1, swapped_s=0.25, group="left")
COMPLETED = Completed(Usage(3, 2), TIMING)


def delta(first_token: int, text: str, *, last: bool = False, index: int = 0) -> SequenceDelta:
    """One token whose id is its number."""
    reason = FinishReason.LENGTH if last else None
    return SequenceDelta(index, first_token, (first_token,), text, finish_reason=reason)


TWO_TOKENS = (STARTED, delta(0, "Hello"), delta(1, " world", last=True), COMPLETED)


def answer_to(spec: GenerationSpec) -> Sequence[Item]:
    """As many tokens as asked for, 16 if not; the prompt counts its ids, or one a character."""
    num_tokens = spec.sampling.max_tokens or 16
    prompt = spec.prompt
    length = len(prompt.token_ids) if isinstance(prompt, PromptTokens) else 5
    deltas = (delta(i, f" w{i}", last=i + 1 == num_tokens) for i in range(num_tokens))
    usage = Usage(length, num_tokens)
    return (Started("request-1", spec.model, length, 7), *deltas, Completed(usage, Timing()))


class FakeRouter(
    inference_pb2_grpc.InferenceServiceServicer, control_pb2_grpc.ControlServiceServicer
):
    """Plays ``scripts`` one call each, then answers every call in full."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.target = ""
        self.scripts: list[Sequence[Item]] = []
        self.specs: list[GenerationSpec] = []
        self.metadata: list[dict[str, str]] = []
        self.cancelled = asyncio.Event()
        self.drain_request: control_pb2.DrainRequest | None = None
        self.explain_request: control_pb2.ExplainRequestsRequest | None = None
        self.policy_request: control_pb2.SetPolicyRequest | None = None
        self.residence_request: control_pb2.SetResidenceRequest | None = None

    def await_cancellation(self) -> None:
        """Wait, from another thread, until a request was cancelled."""
        waiting = asyncio.wait_for(self.cancelled.wait(), 5)
        asyncio.run_coroutine_threadsafe(waiting, self._loop).result()

    async def GenerateStream(self, request, context):  # noqa: N802
        async for event in self._play(request.spec, context):
            yield event_to_proto(event)

    async def Generate(self, request, context):  # noqa: N802
        assembly = Assembly()
        async for event in self._play(request.spec, context):
            assembly.add(event)
        assert assembly.generation is not None
        return generation_to_proto(assembly.generation)

    async def Tokenize(self, request, context):  # noqa: N802
        text = request.text or request.chat.messages[0].content
        return inference_pb2.TokenizeResponse(token_ids=text.encode(), max_model_len=64)

    async def Detokenize(self, request, context):  # noqa: N802
        return inference_pb2.DetokenizeResponse(text=bytes(request.token_ids).decode())

    async def ListModels(self, request, context):  # noqa: N802
        return inference_pb2.ListModelsResponse(models=[MODEL])

    async def GetModel(self, request, context):  # noqa: N802
        return inference_pb2.GetModelResponse(model=MODEL)

    async def Status(self, request, context):  # noqa: N802
        return STATUS

    async def Drain(self, request, context):  # noqa: N802
        self.drain_request = request
        return control_pb2.DrainResponse(drained=request.group != "busy", num_inflight=0)

    async def ExplainRequests(self, request, context):  # noqa: N802
        self.explain_request = request
        return explanation_to_proto(EXPLANATION)

    async def SetPolicy(self, request, context):  # noqa: N802
        self.policy_request = request
        changes = [PolicyChange("left", "fcfs", request.policy)]
        if not request.group:
            changes.append(PolicyChange("right", "", "", "it is down"))
        return control_pb2.SetPolicyResponse(changes=map(change_to_proto, changes))

    async def SetResidence(self, request, context):  # noqa: N802
        self.residence_request = request
        state = wanted_state(request.state) or WeightState.RESIDENT
        residences = [Residence("left", state, request.pinned, "", 1.5)]
        if not request.group:
            late = "is still loading after 60 s"
            residences.append(Residence("right", WeightState.LOADING, False, late, 60.0))
        return control_pb2.SetResidenceResponse(residences=map(residence_to_proto, residences))

    async def _play(self, message, context) -> AsyncIterator[StreamEvent]:
        spec = spec_from_proto(message)
        self.specs.append(spec)
        self.metadata.append(dict(context.invocation_metadata()))
        script = self.scripts.pop(0) if self.scripts else answer_to(spec)
        try:
            for item in script:
                if isinstance(item, RequestError):
                    await context.abort(*to_status(item))
                elif item is HANG:
                    await asyncio.Event().wait()
                else:
                    yield item
        except (asyncio.CancelledError, GeneratorExit):
            # The latter if the call was cancelled while it wrote what this yielded.
            self.cancelled.set()
            raise


MODEL = inference_pb2.Model(
    id="tiny",
    state=inference_pb2.MODEL_STATE_READY,
    source="folder",
    architecture="LlamaForCausalLM",
    dtype="float32",
    max_model_len=64,
    vocab_size=100,
    num_parameters=260_000,
    groups=["left"],
)
HOSTED = (
    ModelLoad("tiny", WeightState.RESIDENT, True, 2, 1, 1234, 12, 3, 5 * 2**20, 4, 0.125),
    ModelLoad(
        "other",
        weight_bytes=2**30,
        state=WeightState.COLD,
        problem="/models/other/model.safetensors\nhas changed",
    ),
)
STATUS = control_pb2.StatusResponse(
    version="0.1.0",
    groups=[
        control_pb2.DeviceGroupStatus(
            name="left",
            address="127.0.0.1:1",
            epoch=3,
            state=control_pb2.DEVICE_GROUP_STATE_READY,
            models=["tiny"],
            num_running=2,
            num_waiting=1,
            num_blocks=100,
            num_free_blocks=75,
            num_tokens=1234,
            num_preemptions=5,
            prefix_query_tokens=200,
            prefix_hit_tokens=50,
            policy="mlfq",
            num_swapped=4,
            num_host_blocks=30,
            num_disk_blocks=20,
            hosted=map(model_load_to_proto, HOSTED),
            slab_bytes=4 * 2**20,
            num_slabs=64,
            num_free_slabs=32,
            fragmented_bytes=2**20,
        ),
        control_pb2.DeviceGroupStatus(
            name="right", state=control_pb2.DEVICE_GROUP_STATE_DOWN, models=["other"]
        ),
    ],
    num_inflight=3,
    outcomes={"length": 4},
)

REQUEST = RequestStatus(
    request_id="r-1",
    model="tiny",
    phase=RequestPhase.SWAPPED,
    tenant="ac\nme",
    priority=2,
    rank=(0.0, float("inf")),
    level=1,
    num_prompt_tokens=100,
    num_output_tokens=7,
    num_blocks=3,
    num_parked_blocks=9,
    tier="host",
    last_preemption="r-2 ranks before it",
    timing=Timing(0.5, 0.25, 0.75, 1.5, 2.25, 4, 0.75, 12_000_000, 16, "left", 0.375),
)
EXPLANATION = Explanation((REQUEST,), num_omitted=3, unanswered=("right",))


@asynccontextmanager
async def serving() -> AsyncIterator[FakeRouter]:
    """A fake router that listens on a free loopback port."""
    router = FakeRouter()
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(router, server)
    control_pb2_grpc.add_ControlServiceServicer_to_server(router, server)
    server.add_generic_rpc_handlers([_health_handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    router.target = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield router
    finally:
        await server.stop(None)


@contextmanager
def serving_in_thread() -> Iterator[FakeRouter]:
    """A fake router in a thread of its own, for callers without an event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = serving()
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _health_handler() -> grpc.GenericRpcHandler:
    async def check(request, context):
        return wrappers_pb2.Int32Value(value=2 if request.value == "asleep" else 1)

    method = grpc.unary_unary_rpc_method_handler(
        check,
        request_deserializer=wrappers_pb2.StringValue.FromString,
        response_serializer=wrappers_pb2.Int32Value.SerializeToString,
    )
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": method})
