"""Chat templates: messages to the prompt text that a model was trained on."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fabric.core.errors import InvalidRequest

FIELD = "prompt.chat"
ROLES = ("system", "developer", "user", "assistant", "tool")


class ChatTemplate:
    """A Jinja template, run in a sandbox, with the functions that transformers offers it."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        """Keep the template; it is compiled when first used.

        Args:
            source: Jinja source, as in tokenizer_config.json.
            variables: What the template may refer to, such as ``bos_token``.
        """
        self._source = source
        self._template: Template | None = None
        self._variables = dict(variables)
        self._environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        self._environment.filters["tojson"] = _to_json
        self._environment.globals["raise_exception"] = _raise_exception
        self._environment.globals["strftime_now"] = _strftime_now

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """Turn messages (``role``, ``content``) into text.

        Raises:
            InvalidRequest: There are no messages, a role is unknown, or the template refuses.
        """
        if not messages:
            raise InvalidRequest.of(FIELD, "has no messages")
        for index, message in enumerate(messages):
            if message.get("role") not in ROLES:
                raise InvalidRequest.of(
                    f"{FIELD}.messages[{index}].role",
                    f"is {message.get('role')!r}; allowed: {', '.join(ROLES)}",
                )
        try:
            if self._template is None:
                self._template = self._environment.from_string(self._source)
            return self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._variables
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InvalidRequest.of(FIELD, f"the model's chat template fails: {error}") from error


def _to_json(value: object, indent: int | None = None) -> str:
    """Jinja's own filter escapes HTML, which templates for models don't expect."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> str:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
