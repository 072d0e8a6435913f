"""What a client asks for, before the prompt is tokenized and the defaults are filled in."""

from dataclasses import dataclass, field

from fabric.core.request import Objectives
from fabric.core.sampling import SamplingOverrides


@dataclass(frozen=True, slots=True)
class PromptText:
    """Plain text, tokenized as the model's tokenizer does."""

    text: str


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Token ids, taken as they are."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation; ``role`` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class PromptChat:
    """A conversation, oldest message first, rendered by the model's chat template."""

    messages: tuple[ChatMessage, ...]
    add_generation_prompt: bool = True


Prompt = PromptText | PromptTokens | PromptChat


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """One generation as the client describes it; an empty ``request_id`` lets the server choose.

    What it says of scheduling is described at GenerationRequest.
    """

    model: str
    prompt: Prompt
    sampling: SamplingOverrides = field(default_factory=SamplingOverrides)
    request_id: str = ""
    priority: int = 0
    cache_salt: str = ""
    tenant: str = ""
    objectives: Objectives = field(default_factory=Objectives)
    expected_tokens: int | None = None
