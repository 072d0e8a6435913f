"""deploy/fabric.yaml shows every configuration key, each with its default."""

import re
from pathlib import Path

from pydantic import BaseModel

from fabric.config import FabricConfig, Section, load_config

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy/fabric.yaml"
KEY = re.compile(r"^[ #-]*(\w+):(?: |$)", re.MULTILINE)


def sections(value: object) -> list[BaseModel]:
    """A configuration's sections, at every depth."""
    if isinstance(value, list):
        return [section for item in value for section in sections(item)]
    if not isinstance(value, BaseModel):
        return []
    return [
        value,
        *(s for name in type(value).model_fields for s in sections(getattr(value, name))),
    ]


def test_every_key_is_shown_and_no_other():
    shown = set(KEY.findall(EXAMPLE.read_text()))
    known = {name for kind in [*Section.__subclasses__()] for name in kind.model_fields}
    assert shown == known


def test_every_shown_value_is_the_default():
    config = load_config(EXAMPLE)
    assert isinstance(config, FabricConfig)
    for section in sections(config):
        for name, field in type(section).model_fields.items():
            if not field.is_required():
                default = field.get_default(call_default_factory=True)
                assert getattr(section, name) == default, name
