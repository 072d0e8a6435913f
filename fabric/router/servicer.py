"""The InferenceService."""

from collections.abc import Iterable
from dataclasses import replace

import grpc

from fabric.core.errors import InvalidRequest, RequestError
from fabric.core.generation import Completed, Generation, Sequence, Started
from fabric.core.prompt import GenerationSpec, Prompt, PromptText
from fabric.core.request import SequenceDelta
from fabric.router.admission import Admission, check_token_ids
from fabric.router.catalog import Catalog
from fabric.router.dispatch import Dispatcher
from fabric.router.handlers import Context, request_id_of, streaming, unary
from fabric.router.mailbox import merged
from fabric.router.tokenizers import TokenizerCache
from fabric.rpc.convert import chat_from_proto, spec_from_proto
from fabric.rpc.convert_output import delta_to_proto, event_to_proto, generation_to_proto
from fabric.rpc.convert_status import model_to_proto
from fabric.rpc.v1 import inference_pb2 as pb

NAME = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name


class InferenceServicer:
    """Answers for the served models."""

    def __init__(
        self,
        catalog: Catalog,
        dispatcher: Dispatcher,
        admission: Admission,
        tokenizers: TokenizerCache,
    ) -> None:
        self._catalog = catalog
        self._dispatcher = dispatcher
        self._admission = admission
        self._tokenizers = tokenizers

    def handler(self) -> grpc.GenericRpcHandler:
        """What to register with a grpc.aio server."""
        methods = {
            "Generate": unary(pb.GenerateRequest, self.generate),
            "GenerateStream": streaming(pb.GenerateStreamRequest, self.generate_stream),
            "Tokenize": unary(pb.TokenizeRequest, self.tokenize),
            "Detokenize": unary(pb.DetokenizeRequest, self.detokenize),
            "ListModels": unary(pb.ListModelsRequest, self.list_models),
            "GetModel": unary(pb.GetModelRequest, self.get_model),
        }
        return grpc.method_handlers_generic_handler(NAME, methods)

    async def generate_stream(self, request: pb.GenerateStreamRequest, context: Context) -> None:
        """Write Started, deltas, Completed; each take of what is ready goes out at once."""
        spec = _named(request.spec, context)
        async with self._dispatcher.open(spec, context.time_remaining()) as answer:
            await _send_metadata(context, answer.started)
            await context.write(event_to_proto(answer.started).SerializeToString())
            end: Completed | RequestError | None = None
            while end is None:
                letters = await answer.take()
                for delta in letters.deltas:
                    await context.write(delta_to_proto(delta).SerializeToString())
                end = letters.end
            if isinstance(end, RequestError):
                raise end
            await context.write(event_to_proto(end).SerializeToString())

    async def generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        """Collect the whole answer."""
        spec = _named(request.spec, context)
        async with self._dispatcher.open(spec, context.time_remaining()) as answer:
            await _send_metadata(context, answer.started)
            deltas: list[SequenceDelta] = []
            end: Completed | RequestError | None = None
            while end is None:
                letters = await answer.take()
                deltas.extend(letters.deltas)
                end = letters.end
            if isinstance(end, RequestError):
                raise end
            return generation_to_proto(_generation(answer.started, deltas, end))

    async def tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Tokenize a text or a conversation."""
        card = self._catalog.served(request.model).card
        adds = not request.HasField("add_special_tokens") or request.add_special_tokens
        prompt: Prompt
        match request.WhichOneof("input"):
            case "text":
                prompt = PromptText(request.text)
            case "chat":
                prompt = chat_from_proto(request.chat)
            case _:
                raise InvalidRequest.of("input", "is missing; give text or chat")
        with self._dispatcher.ledger.admitted():
            ids = await self._admission.tokenize(prompt, card, adds)
        return pb.TokenizeResponse(token_ids=ids, max_model_len=card.max_model_len)

    async def detokenize(
        self, request: pb.DetokenizeRequest, context: Context
    ) -> pb.DetokenizeResponse:
        """Turn token ids into text."""
        card = self._catalog.served(request.model).card
        ids = tuple(request.token_ids)
        check_token_ids(ids, card.vocab_size, "token_ids")
        tokenizer = await self._tokenizers.tokenizer(card)
        skips = request.skip_special_tokens
        with self._dispatcher.ledger.admitted():
            text = await self._tokenizers.run(
                len(ids), lambda: tokenizer.decode(ids, skip_special_tokens=skips)
            )
        return pb.DetokenizeResponse(text=text)

    async def list_models(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """Describe all known models."""
        statuses = map(self._catalog.model_status, self._catalog.model_ids)
        return pb.ListModelsResponse(models=map(model_to_proto, statuses))

    async def get_model(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        """Describe one model."""
        return pb.GetModelResponse(model=model_to_proto(self._catalog.model_status(request.model)))


def _named(message: pb.GenerationSpec, context: Context) -> GenerationSpec:
    """The spec, with the id of the call's metadata where the message has none."""
    spec = spec_from_proto(message)
    return spec if spec.request_id else replace(spec, request_id=request_id_of(context))


async def _send_metadata(context: Context, started: Started) -> None:
    await context.send_initial_metadata((("x-request-id", started.request_id),))


def _generation(started: Started, deltas: Iterable[SequenceDelta], end: Completed) -> Generation:
    sequences = (
        Sequence(d.index, d.text, d.token_ids, d.finish_reason, d.logprobs, d.stop_match)
        for d in merged(deltas)
    )
    return Generation(
        started.request_id,
        started.model,
        tuple(sorted(sequences, key=lambda sequence: sequence.index)),
        end.usage,
        end.timing,
        started.seed,
    )
