"""The client SDK for asyncio."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from google.protobuf import wrappers_pb2

from fabric.client.channel import TlsOptions, open_channel
from fabric.client.options import GenerateOptions, PromptLike, as_prompt, build_spec
from fabric.client.results import DrainOutcome, Tokenized
from fabric.client.retry import Attempts, RetryPolicy
from fabric.client.stream import AsyncGenerationStream, own_cancellation_only
from fabric.core.errors import InvalidRequest
from fabric.core.generation import Generation
from fabric.core.plan_steps import PlanProgress
from fabric.core.prompt import PromptTokens
from fabric.core.status import Explanation, FabricStatus, ModelStatus, PolicyChange, Residence
from fabric.core.weights import WeightState
from fabric.rpc.convert import naming, set_prompt, spec_to_proto
from fabric.rpc.convert_output import duration, generation_from_proto
from fabric.rpc.convert_plan import progress_from_proto
from fabric.rpc.convert_requests import change_from_proto, explanation_from_proto
from fabric.rpc.convert_status import fabric_status_from_proto, model_from_proto
from fabric.rpc.convert_weights import residence_from_proto, wanted_state_to_proto
from fabric.rpc.status import from_rpc_error
from fabric.rpc.v1 import control_pb2, inference_pb2
from fabric.rpc.v1.control_pb2_grpc import ControlServiceStub
from fabric.rpc.v1.inference_pb2_grpc import InferenceServiceStub

DEFAULT_TARGET = "127.0.0.1:50051"
_HEALTH_SERVING = 1


class AsyncClient:
    """A connection to a fabric's router; make it inside a running event loop.

        async with AsyncClient("127.0.0.1:50051") as client:
            async for piece in client.stream("my-model", "Once upon", max_tokens=64).text():
                print(piece, end="")

    Every method raises the ``fabric.core.errors.RequestError`` that the server answered with.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: TlsOptions | None = None,
        timeout_s: float | None = None,
        retry: RetryPolicy | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Prepare a connection; it is made with the first call.

        Args:
            target: The router's address.
            tls: Encrypts the connection; plain text if None.
            timeout_s: Deadline of calls that don't give their own.
            retry: When failed calls are tried again.
            metadata: Sent with every call, such as an authorization header; keys in lower case.

        Raises:
            ConfigError: A TLS file can't be read.
        """
        self._channel = open_channel(target, tls)
        self._inference = InferenceServiceStub(self._channel)
        self._control = ControlServiceStub(self._channel)
        # grpc.health.v1's messages, by their wire format: one string, one enum, both field 1.
        self._health = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=wrappers_pb2.StringValue.SerializeToString,
            response_deserializer=wrappers_pb2.Int32Value.FromString,
        )
        self._timeout_s = timeout_s
        self._retry = retry or RetryPolicy()
        self._metadata = tuple(metadata)

    async def generate(
        self, model: str, prompt: PromptLike, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Generate, and return everything at once."""
        spec = spec_to_proto(build_spec(model, prompt, options))
        request = inference_pb2.GenerateRequest(spec=spec)
        timeout_s = options.get("timeout_s", self._timeout_s)
        response = await self._call(self._inference.Generate, request, timeout_s)
        return generation_from_proto(response)

    def stream(
        self, model: str, prompt: PromptLike, **options: Unpack[GenerateOptions]
    ) -> AsyncGenerationStream:
        """Generate, and return tokens as they become ready; the deadline counts from here."""
        spec = spec_to_proto(build_spec(model, prompt, options))
        request = inference_pb2.GenerateStreamRequest(spec=spec)

        def open_call(timeout_s: float | None) -> Any:
            return self._inference.GenerateStream(
                request, timeout=timeout_s, metadata=self._metadata
            )

        timeout_s = options.get("timeout_s", self._timeout_s)
        return AsyncGenerationStream(open_call, Attempts(self._retry, timeout_s))

    async def tokenize(
        self, model: str, prompt: PromptLike, *, add_special_tokens: bool = True
    ) -> Tokenized:
        """Turn text or a conversation into the model's token ids."""
        request = inference_pb2.TokenizeRequest(model=model, add_special_tokens=add_special_tokens)
        parsed = as_prompt(prompt)
        if isinstance(parsed, PromptTokens):
            raise InvalidRequest.of("input", "is token ids already; give text or a conversation")
        set_prompt(request, parsed)
        response = await self._call(self._inference.Tokenize, request, self._timeout_s)
        return Tokenized(tuple(response.token_ids), response.max_model_len)

    async def detokenize(
        self, model: str, token_ids: Sequence[int], *, skip_special_tokens: bool = False
    ) -> str:
        """Turn token ids into text."""
        request = inference_pb2.DetokenizeRequest(
            model=model, skip_special_tokens=skip_special_tokens
        )
        with naming("token_ids"):
            request.token_ids.extend(token_ids)
        response = await self._call(self._inference.Detokenize, request, self._timeout_s)
        return str(response.text)

    async def models(self) -> tuple[ModelStatus, ...]:
        """The served models."""
        request = inference_pb2.ListModelsRequest()
        response = await self._call(self._inference.ListModels, request, self._timeout_s)
        return tuple(map(model_from_proto, response.models))

    async def model(self, model: str) -> ModelStatus:
        """One served model."""
        request = inference_pb2.GetModelRequest(model=model)
        response = await self._call(self._inference.GetModel, request, self._timeout_s)
        return model_from_proto(response.model)

    async def status(self) -> FabricStatus:
        """What runs, where, and how loaded it is."""
        request = control_pb2.StatusRequest()
        response = await self._call(self._control.Status, request, self._timeout_s)
        return fabric_status_from_proto(response)

    async def drain(self, group: str = "", *, timeout_s: float | None = None) -> DrainOutcome:
        """Stop new requests to a device group, or to all and the router; wait for the others.

        Args:
            group: The device group's name; empty for everything.
            timeout_s: How long the server waits; its own default if None.
        """
        wait = None if timeout_s is None else duration(timeout_s)
        request = control_pb2.DrainRequest(group=group, timeout=wait)
        response = await self._call(self._control.Drain, request, None)
        return DrainOutcome(response.drained, response.num_inflight)

    async def explain(
        self, group: str = "", *, request_id: str = "", limit: int | None = None
    ) -> Explanation:
        """Where requests in flight are, why they had to give way, and what that cost.

        Args:
            group: The device group to ask; all of them if empty.
            request_id: Only requests of this id; all of them if empty.
            limit: At most this many; the server's own limit if None.
        """
        request = control_pb2.ExplainRequestsRequest(group=group, request_id=request_id)
        if limit is not None:
            with naming("limit"):
                request.limit = limit
        response = await self._call(self._control.ExplainRequests, request, self._timeout_s)
        return explanation_from_proto(response)

    async def set_policy(
        self, policy: str, group: str = "", *, numbers: Mapping[str, float] | None = None
    ) -> tuple[PolicyChange, ...]:
        """Switch the scheduling policy of a device group, or of all; no request is dropped.

        Args:
            policy: Its name, such as mlfq.
            group: The device group's name; empty for all.
            numbers: What the policy goes by, such as alpha_s; absent ones have their defaults.
        """
        request = control_pb2.SetPolicyRequest(group=group, policy=policy)
        with naming("numbers"):
            request.numbers.update(numbers or {})
        response = await self._call(self._control.SetPolicy, request, self._timeout_s)
        return tuple(map(change_from_proto, response.changes))

    async def set_residence(
        self,
        model: str,
        state: WeightState | None = None,
        pinned: bool | None = None,
        *,
        group: str = "",
        timeout_s: float = 60.0,
    ) -> tuple[Residence, ...]:
        """Bring a model's weights to the device or take them away; no request is dropped.

        With ``pinned`` alone this returns as soon as the model is pinned, which may be before its
        weights are there; give RESIDENT, too, to wait for them.

        Args:
            model: The served model's id.
            state: COLD, HOST or RESIDENT; nothing moves if None.
            pinned: Whether they are to stay on the device whatever happens; as before if None.
            group: The device group's name; empty for all that host the model.
            timeout_s: How long the server waits until they are there.

        Returns:
            Where they are then, by group; one that has not got there says why in its ``error``.
        """
        request = control_pb2.SetResidenceRequest(
            model=model, group=group, state=wanted_state_to_proto(state)
        )
        if pinned is not None:
            request.pinned = pinned
        with naming("timeout_s"):
            request.timeout.CopyFrom(duration(timeout_s))
        response = await self._call(self._control.SetResidence, request, None)
        return tuple(map(residence_from_proto, response.residences))

    async def apply_plan(
        self, plan: str, *, dry_run: bool = False, timeout_s: float | None = None
    ) -> AsyncGenerator[PlanProgress, None]:
        """Move the fabric to another placement plan; no request is dropped.

        It goes on if this is left before its end.

        Args:
            plan: YAML with the keys ``models`` and ``groups`` of a configuration.
            dry_run: Only tell the steps.
            timeout_s: How long new groups may take to serve, and old ones to finish what they
                have, each; the server's default if None.

        Yields:
            All steps as planned, then each as it begins and ends.

        Raises:
            FailedPrecondition: A step failed; the old plan serves on.
            Aborted: Another plan is being applied.
        """
        wait = None if timeout_s is None else duration(timeout_s)
        request = control_pb2.ApplyPlanRequest(plan=plan, dry_run=dry_run, timeout=wait)
        call = self._control.ApplyPlan(request, metadata=self._metadata)
        try:
            with own_cancellation_only():
                while (message := await call.read()) is not grpc.aio.EOF:
                    yield progress_from_proto(message)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def health(self, service: str = "") -> bool:
        """Whether the router, or one of its services by full name, can serve now."""
        request = wrappers_pb2.StringValue(value=service)
        response = await self._call(self._health, request, self._timeout_s)
        return bool(response.value == _HEALTH_SERVING)

    async def aclose(self) -> None:
        """Cancel what is in flight and close the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        attempts = Attempts(self._retry, timeout_s)
        while True:
            remaining_s = attempts.remaining_s()
            try:
                with own_cancellation_only():
                    return await method(request, timeout=remaining_s, metadata=self._metadata)
            except grpc.RpcError as error:
                await attempts.wait(from_rpc_error(error))
