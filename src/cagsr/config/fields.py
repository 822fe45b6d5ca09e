"""Field types of config keys, and the strict base class of all sections."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from cagsr.errors import InputError
from cagsr.io.places import expanded

__all__ = [
    "AtLeastOne",
    "Count",
    "LearningRate",
    "NotNegative",
    "Place",
    "Positive",
    "Scalar",
    "Section",
    "Seed",
    "Share",
    "Switch",
    "Text",
    "place",
]


def _switch(value: Any) -> Any:
    # YAML 1.1's other booleans: they are text to our reader, so that `mixed_precision: no` stays a word.
    words = {"yes": True, "on": True, "no": False, "off": False}
    return words.get(value.lower(), value) if isinstance(value, str) else value


def place(value: str) -> str:
    """A path with what `expanded` puts into it; raises an error that pydantic reports with the key."""
    try:
        return expanded(value)
    except InputError as error:
        raise PydanticCustomError("place", "{why}", {"why": str(error)}) from None


Switch = Annotated[bool, BeforeValidator(_switch)]
Text = Annotated[str, Field(min_length=1)]
# A path, or a name that may be one: ~ and $VARIABLE are expanded.
Place = Annotated[str, Field(min_length=1), AfterValidator(place)]
AtLeastOne = Annotated[int, Field(ge=1, le=10**9)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Scalar = bool | int | float | str | None
LearningRate = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """Strict, immutable base class of config sections: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
