"""What the fields of all request bodies have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Body(BaseModel):
    """A request body, or an object in one: types are strict, unknown fields are errors, numbers are finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def unicode_text(value: str) -> str:
    r"""JSON can spell half of a character (`"\ud800"`), which no tokenizer can encode."""
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("holds a lone surrogate, which is not a character")
    return value


Text = Annotated[str, AfterValidator(unicode_text)]
