import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from entrep_cli.reporting.contact_sheets import MARKS, Tile, contact_sheet, picture_grid
from tests.reporting.test_drawing import edges_are_white


def pictures(n, height=8, width=12):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (3, height, width), dtype=np.uint8) for _ in range(n)]


def test_a_grid_shows_every_picture_as_it_is(tmp_path, figures):
    tiles = pictures(6)
    path = picture_grid([tiles[:3], tiles[3:]], ["a", "$b_", "c"], tmp_path / "grid.png", "t", "small print $1$")
    shown = [(axes.get_title(), axes.images[0].get_array()) for axes in figures[0].axes]
    assert Image.open(path).format == "PNG" and [title for title, _ in shown] == ["a", "$b_", "c", "", "", ""]
    for (_, picture), tile in zip(shown, tiles):
        assert np.array_equal(picture, tile.transpose(1, 2, 0))
    again = picture_grid([tiles[:3], tiles[3:]], ["a", "$b_", "c"], tmp_path / "again.png", "t", "small print $1$")
    assert path.read_bytes() == again.read_bytes() and b"Software" not in path.read_bytes()
    for rows in ([], [tiles[:2]]):
        with pytest.raises(ValueError, match="do not fit"):
            picture_grid(rows, ["a", "b", "c"], tmp_path / "no.png", "t")


@pytest.fixture
def figures(monkeypatch):
    """All that is written."""
    written, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: (written.append(figure), savefig(figure, *args, **options)))
    return written


def tiles_of(tmp_path, marks):
    tiles = []
    for i, mark in enumerate(marks):
        path = tmp_path / f"{i}.png"
        Image.fromarray(pictures(1)[0].transpose(1, 2, 0)).save(path)
        tiles.append(Tile(path, f"{i}. $x_ [red]<b>a long name that is cut\nsecond", mark))
    return tiles


def test_a_sheet_tells_hits_from_misses_by_colour_stroke_and_word(tmp_path, figures):
    tiles = tiles_of(tmp_path, ["query", "hit", "miss", "truth", ""])
    path = contact_sheet("Nearest to [red]\x1b[2J $x_$", tiles, tmp_path / "sheet.png", columns=3)
    spines = [axes.spines["left"] for axes in figures[0].axes]
    drawn, words = [(spine.get_edgecolor(), spine.get_linestyle()) for spine in spines], [text.get_text() for text in figures[0].texts]
    assert edges_are_white(path) and len(set(drawn)) == 5 and len({stroke for _, stroke in drawn[1:4]}) == 3
    assert words[0] == "Nearest to [red]\\x1b[2J $x_$" and "0. $x_ [red]<b>a long na...\nsecond" in words
    assert words[-4:] == [MARKS[mark].word for mark in ("query", "hit", "miss", "truth")]
    first = path.read_bytes()
    assert contact_sheet("Nearest to [red]\x1b[2J $x_$", tiles, tmp_path / "again.png", columns=3).read_bytes() == first


def test_a_sheet_explains_only_the_frames_it_has_and_survives_a_picture_that_is_gone(tmp_path, figures):
    tiles = tiles_of(tmp_path, ["", ""])
    tiles[1].image.unlink()
    contact_sheet("septal spur", tiles, tmp_path / "sheet.png")
    words = [text.get_text() for place in (figures[0], *figures[0].axes) for text in place.texts]
    assert words.count("cannot be read") == 1 and not {mark.word for mark in MARKS.values()} & set(words)
    assert contact_sheet("nothing found", [], tmp_path / "empty.png").is_file()
