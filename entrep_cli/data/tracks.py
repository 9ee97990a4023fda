"""The three tracks of the contest, and the names of their files (challenge.md, Test inputs and Submission)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from entrep_cli.errors import UsageError


@dataclass(frozen=True)
class Track:
    """One track: its number, its name and the names of its files."""

    number: int
    name: str
    query_file: str
    member: str
    truth_file: str

    @property
    def asks_files(self) -> bool:
        """Whether a query is a file name (else a text)."""
        return self.number != 3


TRACKS: Mapping[int, Track] = {
    1: Track(1, "classification", "cls.csv", "submission.json", "truth_cls.json"),
    2: Track(2, "image-to-image", "i2i.csv", "submission_i2i.json", "truth_i2i.json"),
    3: Track(3, "text-to-image", "t2i.csv", "submission_t2i.json", "truth_t2i.json"),
}


def track_of(number: int) -> Track:
    """The track with this number; UsageError for another than 1, 2, 3."""
    if number not in TRACKS:
        known = ", ".join(f"{track.number} ({track.name})" for track in TRACKS.values())
        raise UsageError(f"No track {number!r}.", hint=f"choose one of {known}")
    return TRACKS[number]
