"""`Config`, all sections together: read from YAML with overrides on top, checked, and written as resolved."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError, model_validator

from cagsr.config.messages import messages
from cagsr.config.schema import Sections
from cagsr.config.validation import Conflicts, conflicts
from cagsr.config.yaml_document import Document, read_document, write_document
from cagsr.errors import InputError

__all__ = ["Config"]


class Config(Sections):
    """All settings of a run. Only where prompts come from (data.task or data.source) has no default."""

    @classmethod
    def load(cls, path: str | Path | None = None, overrides: Sequence[str] = ()) -> Self:
        """Read the config in ``path`` with ``overrides`` on top; raises InputError, a line for each mistake."""
        document = read_document(path, overrides)
        # A section whose keys are all commented out reads as null: it means the defaults.
        document.data = {key: {} if value is None else value for key, value in document.data.items()}
        try:
            return cls.model_validate(document.data)
        except ValidationError as error:
            raise InputError("\n".join(messages(error, document, cls))) from None

    @classmethod
    def checked(cls, sections: Mapping[str, Any], name: str) -> Self:
        """The config of these ``sections``; raises InputError, a line for each mistake that begins with ``name``."""
        try:
            return cls.model_validate(sections)
        except ValidationError as error:
            document = Document(data=dict(sections), name=name)
            raise InputError("\n".join(messages(error, document, cls))) from None

    @classmethod
    def of(cls, given: "Config | str | Path") -> "Config":
        """A config as it is, or the one in a YAML file; raises InputError."""
        return given if isinstance(given, Config) else cls.load(given)

    def replaced(self, keys: Mapping[str, Any]) -> Self:
        """A copy with other values for these keys, ``{"train.seed": 3}``; a section as a whole by its name."""
        sections: dict[str, Any] = {}
        for key, value in keys.items():
            section, _, name = key.partition(".")
            before = sections.get(section, getattr(self, section))
            sections[section] = before.model_copy(update={name: value}) if name else value
        return self.model_copy(update=sections)

    def as_yaml(self) -> str:
        """The resolved config as YAML that loads back equal."""
        return write_document(self.model_dump(mode="json"))

    def dump(self, path: str | Path) -> None:
        """Write the resolved config as YAML that loads back equal."""
        Path(path).write_text(self.as_yaml(), encoding="utf-8")

    @model_validator(mode="after")
    def _refuse_impossible_combinations(self) -> Self:
        found = list(conflicts(self))
        if found:
            raise Conflicts(found)
        return self
