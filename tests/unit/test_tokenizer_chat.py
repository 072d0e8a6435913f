import pytest

from fabric.core.errors import InvalidRequest
from fabric.models.chat import ChatTemplate

HELLO = [{"role": "user", "content": "<hi> é"}]


def render(source: str, messages: list[dict[str, str]] | None = None, **variables: str) -> str:
    return ChatTemplate(source, variables).render(HELLO if messages is None else messages)


def test_blocks_leave_no_blank_lines():
    source = (
        "{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}"
    )
    assert render(source) == "<hi> é\n"


def test_variables_and_the_generation_prompt_are_there():
    source = "{{ bos_token }}{% if add_generation_prompt %}go{% endif %}"
    assert render(source, bos_token="<s>") == "<s>go"


def test_to_json_escapes_neither_html_nor_unicode():
    assert render("{{ messages[0] | tojson }}") == '{"role": "user", "content": "<hi> é"}'


def test_the_date_can_be_asked_for():
    assert len(render("{{ strftime_now('%Y') }}")) == 4


def test_loops_can_be_left():
    assert render("{% for m in [1, 2] %}{{ m }}{% break %}{% endfor %}") == "1"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system role') }}",
        "{% for %}",
        "{{ messages[0].content.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[9]['content'] }}",
        "{{ 1 + 'a' }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_fails_is_the_requests_error(source: str):
    with pytest.raises(InvalidRequest) as caught:
        render(source)
    assert [violation.field for violation in caught.value.violations] == ["prompt.chat"]


@pytest.mark.parametrize(
    ("messages", "named"),
    [([], "no messages"), ([{"role": "robot", "content": ""}], "robot"), ([{}], "None")],
)
def test_messages_are_checked(messages: list[dict[str, str]], named: str):
    with pytest.raises(InvalidRequest, match=named):
        render("", messages)
