"""Reads the groups of a placement's file, as ``fabric-plan plan`` or a person wrote it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError

from fabric.core.errors import ConfigError
from fabric.core.plan import ParallelConfig
from placement.config.loading import problems_of, read_yaml
from placement.config.values import Count, Name
from placement.devices import GroupConfig
from placement.groups import Group, Placement


class _Part(BaseModel):
    """A part of a fabric's configuration, of which more is for others."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="ignore")


class _Hosted(_Part):
    id: Name


class _Parallel(_Part):
    pipeline: Count = 1
    tensor: Count = 1


class _Group(_Part):
    name: Name
    models: Annotated[
        list[
            Annotated[
                _Hosted, BeforeValidator(lambda it: {"id": it} if isinstance(it, str) else it)
            ]
        ],
        Field(min_length=1),
    ]
    parallel: _Parallel = _Parallel()
    memory: ByteSize | None = None


class _Plan(_Part):
    groups: Annotated[list[_Group], Field(min_length=1)]


def load_placement(path: Path, models: Sequence[str], budgets: Mapping[str, int]) -> Placement:
    """The placement that a plan's file describes.

    Args:
        path: YAML with the key ``groups`` of a fabric's configuration.
        models: The names that numbers of models stand for.
        budgets: The device types there are, and what a group may take of such a device: a group is
            on the type whose number its ``memory`` is, where there are several.

    Raises:
        ConfigError: The file can't be read or is no plan, or names what is not known; says where.
    """
    try:
        plan = _Plan.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems_of(error)}") from error
    configs: list[GroupConfig] = []
    groups = []
    for number, section in enumerate(plan.groups):
        where = f"{path}: groups.{number}"
        cut = ParallelConfig(section.parallel.pipeline, section.parallel.tensor)
        config = GroupConfig(_device(section, budgets, where), cut)
        if config not in configs:
            configs.append(config)
        groups.append(Group(configs.index(config), _numbers(section, models, where)))
    return Placement(tuple(configs), tuple(models), tuple(groups))


def _numbers(section: _Group, models: Sequence[str], where: str) -> tuple[int, ...]:
    names = [hosted.id for hosted in section.models]
    for place, name in enumerate(names):
        if name not in models:
            raise ConfigError(
                f"{where}.models.{place}: {name} is no model of the input; allowed: "
                f"{', '.join(models)}"
            )
    return tuple(sorted({models.index(name) for name in names}))


def _device(section: _Group, budgets: Mapping[str, int], where: str) -> str:
    if len(budgets) == 1:
        return next(iter(budgets))
    alike = [name for name, budget in budgets.items() if budget == section.memory]
    if len(alike) == 1:
        return alike[0]
    sizes = ", ".join(f"{budget} ({name})" for name, budget in budgets.items())
    raise ConfigError(
        f"{where}.memory: is {section.memory}; must say on which type the group is: {sizes}"
    )
