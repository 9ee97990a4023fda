import numpy as np
import pytest
from PIL import Image

from entrep_cli.reporting.figures import MARKS, Tile, confusion_png, contact_sheet, curves_png, picture_grid

SEVEN = ["nose-right", "nose-left", "ear-right", "ear-left", "vc-open", "vc-closed", "throat"]


def matrix(n_classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(2, (n_classes, n_classes)) + np.diag(rng.poisson(50, n_classes))


def edges_are_white(path):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    frame = np.concatenate([pixels[:3].ravel(), pixels[-3:].ravel(), pixels[:, :3].ravel(), pixels[:, -3:].ravel()])
    return (frame == 255).all()


@pytest.mark.parametrize(
    "names",
    [
        SEVEN,
        ["only"],
        ["a finding told in a great many words, far more than fit beside a row " * 2, "b"],
        ["$x_", r"$\frac{1}{2}$", "[bold]&<b>", "Ống tai trái", "", "100% {} \\"],
    ],
)
def test_any_names_are_drawn_and_none_is_cut(tmp_path, names):
    path = confusion_png(matrix(len(names)), names, tmp_path / "confusion.png", "50$ of $it_ [red]")
    assert edges_are_white(path)
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]


def test_text_is_drawn_letter_by_letter(tmp_path):
    """As a formula '$1$' would lose its signs and '$\\bad$' would raise."""
    one = confusion_png(matrix(2), ["$1$", r"$\bad$"], tmp_path / "a.png", r"$\bad$").read_bytes()
    other = confusion_png(matrix(2), ["1", r"\bad"], tmp_path / "b.png", r"$\bad$").read_bytes()
    assert one != other


def test_the_same_numbers_give_the_same_bytes_whatever_the_users_settings(tmp_path):
    import matplotlib

    first = confusion_png(matrix(3), list("abc"), tmp_path / "a.png", "t").read_bytes()
    with matplotlib.rc_context({"font.size": 20, "savefig.facecolor": "red", "text.color": "green"}):
        second = confusion_png(matrix(3), list("abc"), tmp_path / "b.png", "t").read_bytes()
        assert matplotlib.rcParams["font.size"] == 20
    assert first == second
    assert b"Software" not in first and b"date" not in first.lower()[:200]


def test_counts_and_shares_stand_in_the_cells(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []

    def keep(figure, *args, **options):
        drawn.extend((text.get_text(), text.get_color()) for text in figure.axes[0].texts)
        drawn.append([label.get_text() for label in figure.axes[0].get_yticklabels()])
        args[0].write_bytes(b"png")

    monkeypatch.setattr(Figure, "savefig", keep)
    confusion_png(np.array([[9, 1], [0, 0]]), ["ear", "nose"], tmp_path / "a.png")
    assert drawn == [
        ("9\n90%", "white"),
        ("1\n10%", "black"),
        ("0", "0.45"),
        ("0", "0.45"),
        ["ear (10)", "nose (0)"],
    ]


def test_a_failed_drawing_leaves_the_old_file(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    path = tmp_path / "confusion.png"
    path.write_bytes(b"old")

    def full_disk(figure, file, **options):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="disk full"):
        confusion_png(matrix(2), ["a", "b"], path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("confusion.png", b"old")]


def test_names_must_fit_the_matrix(tmp_path):
    with pytest.raises(ValueError, match="2 names do not fit"):
        confusion_png(matrix(3), ["a", "b"], tmp_path / "a.png")


def pictures(n, height=8, width=12):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (3, height, width), dtype=np.uint8) for _ in range(n)]


def test_a_grid_shows_every_picture_as_it_is(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    shown = []
    savefig = Figure.savefig

    def keep(figure, *args, **options):
        shown.extend((axes.get_title(), axes.images[0].get_array()) for axes in figure.axes)
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    tiles = pictures(6)
    path = picture_grid([tiles[:3], tiles[3:]], ["a", "$b_", "c"], tmp_path / "grid.png", "t", "small print $1$")
    assert Image.open(path).format == "PNG" and [title for title, _ in shown] == ["a", "$b_", "c", "", "", ""]
    for (_, picture), tile in zip(shown, tiles):
        assert np.array_equal(picture, tile.transpose(1, 2, 0))
    again = picture_grid([tiles[:3], tiles[3:]], ["a", "$b_", "c"], tmp_path / "again.png", "t", "small print $1$")
    assert path.read_bytes() == again.read_bytes() and b"Software" not in path.read_bytes()
    for rows in ([], [tiles[:2]]):
        with pytest.raises(ValueError, match="do not fit"):
            picture_grid(rows, ["a", "b", "c"], tmp_path / "no.png", "t")


def test_curves_have_a_panel_a_score_and_mark_the_epoch_that_is_kept(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = {}
    savefig = Figure.savefig

    def keep(figure, *args, **options):
        drawn.update({axes.get_title(): [list(line.get_ydata()) for line in axes.lines] for axes in figure.axes})
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    panels = {"sum": {"train": [3.0, 2.0], "held out": [3.5, 3.0]}, "$x_": {"train": [1.0, 0.5]}}
    first = curves_png(panels, tmp_path / "a.png", "t", kept=2)
    assert drawn["sum"][:2] == [[3.0, 2.0], [3.5, 3.0]] and drawn["$x_"][0] == [1.0, 0.5] and len(drawn["sum"]) == 3
    assert first.read_bytes() == curves_png(panels, tmp_path / "b.png", "t", kept=2).read_bytes()
    assert curves_png({"sum": {"train": [3.0]}}, tmp_path / "c.png", "t").is_file()


def tiles_of(tmp_path, marks):
    tiles = []
    for i, mark in enumerate(marks):
        path = tmp_path / f"{i}.png"
        Image.fromarray(pictures(1)[0].transpose(1, 2, 0)).save(path)
        tiles.append(Tile(path, f"{i}. $x_ [red]<b>a long name that is cut\nsecond", mark))
    return tiles


def test_a_sheet_tells_hits_from_misses_by_colour_stroke_and_word(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn, words = [], []
    savefig = Figure.savefig

    def keep(figure, *args, **options):
        for axes in figure.axes:
            spine = axes.spines["left"]
            drawn.append((spine.get_edgecolor(), spine.get_linestyle()))
        words.extend(text.get_text() for text in figure.texts)
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    tiles = tiles_of(tmp_path, ["query", "hit", "miss", "truth", ""])
    path = contact_sheet("Nearest to [red]\x1b[2J $x_$", tiles, tmp_path / "sheet.png", columns=3)
    assert edges_are_white(path) and len(set(drawn)) == 5 and len({stroke for _, stroke in drawn[1:4]}) == 3
    assert words[0] == "Nearest to [red]\\x1b[2J $x_$" and "0. $x_ [red]<b>a long na...\nsecond" in words
    assert words[-4:] == [MARKS[mark].word for mark in ("query", "hit", "miss", "truth")]
    first = path.read_bytes()
    assert contact_sheet("Nearest to [red]\x1b[2J $x_$", tiles, tmp_path / "again.png", columns=3).read_bytes() == first


def test_a_sheet_explains_only_the_frames_it_has_and_survives_a_picture_that_is_gone(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    words = []
    savefig = Figure.savefig

    def keep(figure, *args, **options):
        words.extend(text.get_text() for axes in figure.axes for text in axes.texts)
        words.extend(text.get_text() for text in figure.texts)
        savefig(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    tiles = tiles_of(tmp_path, ["", ""])
    tiles[1].image.unlink()
    contact_sheet("septal spur", tiles, tmp_path / "sheet.png")
    assert words.count("cannot be read") == 1 and not {mark.word for mark in MARKS.values()} & set(words)
    assert contact_sheet("nothing found", [], tmp_path / "empty.png").is_file()
