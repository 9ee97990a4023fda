"""The result of an examination of the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was examined.

    Attributes:
        level: `fault` where something in entrep cannot work, `warning` where it works less well.
        what: in a sentence, with the numbers.
        advice: a command that fixes it.
        details: the same for programs.
    """

    area: str
    level: Literal["ok", "warning", "fault"]
    what: str
    advice: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return {"area": self.area, "level": self.level, "what": self.what, "advice": self.advice, **self.details}
