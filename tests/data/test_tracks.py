"""The contest's tracks and the names of their files."""

from __future__ import annotations

import pytest

from entrep_cli.data.tracks import TRACKS, track_of
from entrep_cli.errors import UsageError


def test_table_names_the_contests_files():
    assert [track.number for track in TRACKS.values()] == [1, 2, 3]
    assert [track.query_file for track in TRACKS.values()] == ["cls.csv", "i2i.csv", "t2i.csv"]
    assert TRACKS[1].member == "submission.json" and TRACKS[2].truth_file == "truth_i2i.json"
    assert [track.asks_files for track in TRACKS.values()] == [True, True, False]
    with pytest.raises(UsageError, match="No track 4"):
        track_of(4)
