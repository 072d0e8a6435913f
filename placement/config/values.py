"""What the planner's input is made of: sections that refuse unknown keys, numbers, paths."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

FOLDER = "folder"
UNKNOWN_KEY = "unknown_key"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A part of the input: never changed after loading, unknown keys refused."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, value: object) -> object:
        keys = list(value) if isinstance(value, dict) else []
        if unknown := [key for key in keys if key not in cls.model_fields]:
            raise PydanticCustomError(
                UNKNOWN_KEY,
                "unknown; allowed: {allowed}",
                {"key": str(unknown[0]), "allowed": ", ".join(cls.model_fields)},
            )
        return value


def _existing(path: Path, info: ValidationInfo) -> Path:
    """A path beside the input file, if it is relative."""
    context = info.context or {}
    whole = context.get(FOLDER, Path()) / path.expanduser()
    if not whole.is_file():
        raise ValueError(f"there is no file {whole}")
    return Path(whole)


InputPath = Annotated[Path, AfterValidator(_existing)]
"""A file that exists; a relative path is relative to the input file."""
