"""Which runs can be compared, and what is said of them; the runs are made up, their answers planted."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.errors import RunError, UsageError
from entrep_cli.evaluation.subsets import TextQueries, score_subset, totals_of
from entrep_cli.experiments import comparison
from entrep_cli.experiments.comparison import ACCURACY, compare_runs, named_runs
from entrep_cli.retrieval.embeddings import Embeddings, Items
from entrep_cli.workspace import runs_dir, write_json_atomic

AB = Taxonomy("ab", (ClassInfo("a", 0, "x"), ClassInfo("b", 1, "x")))
EXAMS, FRAMES = 30, 4
SPLIT = {"fingerprint": "s", "fold": None, "ratios": [80.0, 10.0, 10.0], "folds": 0, "seed": 3}


def made_run(name: str, classes: Taxonomy = AB, **more) -> None:
    manifest = {"schema": 2, "method": "dinov2", "taxonomy": classes.as_dict(), "data": {"catalog": "d"}, "split": SPLIT}
    write_json_atomic(
        runs_dir() / name / "run.json", {**manifest, "files": {}, "seconds": 60.0, "parameters": 5, "completed": name, **more}
    )


def part(findings: bool = True) -> Catalog:
    n = EXAMS * FRAMES
    rng = np.random.default_rng(0)
    frame = {
        "image": [f"{i}.png" for i in range(n)],
        "label": rng.choice(["a", "b"], n),
        "group": np.repeat([f"exam {e}" for e in range(EXAMS)], FRAMES),
        "findings": [("spur",) if findings and i % 5 == 0 else ("wax",) if findings and i % 5 == 1 else () for i in range(n)],
    }
    return Catalog(pd.DataFrame(frame), AB)


def seen(images: Catalog, accuracy: float, seed: int) -> Embeddings:
    """Answers right with this probability, exam by exam; vectors near the axis of the answered class."""
    rng = np.random.default_rng(seed)
    sure = rng.beta(4 * accuracy, 4 * (1 - accuracy), EXAMS) if accuracy < 1 else np.ones(EXAMS)
    right = rng.random(len(images)) < np.repeat(sure, FRAMES)
    answered = np.where(right, images.targets, 1 - images.targets)
    angles = np.pi / 2 * answered + rng.normal(0, 0.05, len(images))
    items = Items.of(image=images.images, digest=images.images)
    return Embeddings(items, np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32), np.eye(2, dtype=np.float32)[answered])


@pytest.fixture
def planted(monkeypatch):
    """Runs that are right with a given probability: `planted(weak=0.6, strong=0.9)`; their fold may differ from their own."""
    images = part()

    def plant(seed: int = 0, **accuracies: float) -> None:
        answers = {}
        for i, (name, accuracy) in enumerate(accuracies.items()):
            made_run(name)
            answers[name] = seen(images, accuracy, 100 * seed + i)

        def opened(folder: str, root, split, *, fold, device):
            model = torch.nn.Linear(2, 3)
            model.reads_text = False
            return SimpleNamespace(
                images=images, embeddings=answers[folder.rsplit("/", 1)[-1]], model=model, notes=(f"note of {split}",), fold=fold
            )

        monkeypatch.setattr(comparison, "open_scored", opened)
        things = SimpleNamespace(fingerprint="d", root="data"), SimpleNamespace(fingerprint="s")
        monkeypatch.setattr(comparison, "read_catalog_and_split", lambda root: things)

    return plant


def test_a_planted_difference_is_marked_and_told(planted, tmp_path):
    planted(weak=0.6, strong=0.9, strong2=0.9)
    found = compare_runs(["weak", "strong*"], tmp_path)
    assert [c.name for c in found.contenders] == ["weak", "strong", "strong2"]
    assert list(found.scores) == [
        ACCURACY, "macro F1", "image Recall@1, class", "image MRR, class", "image Recall@1, finding", "image MRR, finding",
    ]  # fmt: skip
    for score in (ACCURACY, "macro F1", "image Recall@1, class"):
        assert found.scores[score].marks == [(), (0,), (0,)]
    assert found.scores["image Recall@1, finding"].n_items < found.scores["image Recall@1, class"].n_items == EXAMS * FRAMES
    assert found.as_good(ACCURACY) == [1, 2] and found.scores[ACCURACY].best in (1, 2) and found.n_pairs == 3
    assert found.notes == ["note of test"]
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    weak, strong, _ = document["runs"]
    assert strong["scores"]["accuracy"]["better_than"] == ["weak"] and weak["scores"]["accuracy"]["better_than"] == []
    assert weak["cost"] == {"seconds": 60.0, "learned_parameters": 5, "parameters": 9, "megabytes": 0.0} and strong["label"] == "b"
    pair = document["comparisons"]["accuracy"]["pairs"][0]
    assert (pair["first"], pair["second"], pair["significant"]) == ("weak", "strong", True) and pair["p"] <= pair["p_holm"] <= 0.05
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    assert len(rows) == 3 * len(found.scores) and float(rows[0]["difference"]) == pytest.approx(pair["difference"]["value"], abs=1e-5)
    assert rows[0]["p_mcnemar"] and not rows[3]["p_mcnemar"]  # macro F1 is no share of items
    files = found.write("mine").files
    assert [path.name for path in files] == ["mine.json", "mine.csv"] and json.loads(files[0].read_text()) == document


def test_equal_runs_are_seldom_marked_and_unequal_ones_mostly(planted, tmp_path):
    """Over 20 draws: of equal runs one mark is expected, and five would be beyond chance (p < 0.003)."""
    images, marked = part(findings=False), {0.75: 0, 0.95: 0}
    for other in marked:
        for seed in range(20):
            scores = [totals_of(score_subset(images, seen(images, p, 1000 * seed + i))) for i, p in enumerate((0.75, other))]
            marked[other] += comparison.compare([s[ACCURACY] for s in scores], resamples=2, permutations=500).marks != [(), ()]
    assert marked[0.75] <= 4 and marked[0.95] >= 17


def test_a_baseline_is_compared_with_all_others_and_nothing_else(planted, tmp_path):
    planted(first=0.7, base=0.6, second=0.9)
    found = compare_runs(["first", "second", "base"], tmp_path, baseline="base", split="val")
    assert [c.name for c in found.contenders] == ["base", "first", "second"] and found.baseline == 0 and found.n_pairs == 2
    assert [(d.first, d.second) for d in found.scores[ACCURACY].differences] == [(0, 1), (0, 2)]
    assert found.to_dict()["baseline"] == "base" and found.title == "3 runs, split val"
    assert found.scores[ACCURACY].best == 2 and found.as_good(ACCURACY) == [2]  # "first" was not compared with the best


def test_too_few_exams_for_any_mark_is_told(planted, tmp_path, monkeypatch):
    planted(weak=0.6, strong=1.0)
    few = part().frame.query("group in ['exam 0', 'exam 1', 'exam 2', 'exam 3']").index
    opened = comparison.open_scored

    def of_few(*args, **more):
        scored = opened(*args, **more)
        scored.images, scored.embeddings = Catalog(scored.images.frame.loc[few].reset_index(drop=True), AB), scored.embeddings.take(few)
        return scored

    monkeypatch.setattr(comparison, "open_scored", of_few)
    found = compare_runs(["weak", "strong"], tmp_path)
    (told,) = (note for note in found.notes if note.startswith("too few groups"))
    assert "with 1 pair no difference can be significant at 0.05 in accuracy (4 groups)" in told
    assert not any(any(compared.marks) for compared in found.scores.values())


def test_what_cannot_be_compared_is_listed_at_once(planted, tmp_path):
    planted(good=0.8, fine=0.8)
    made_run("elsewhere", data={"catalog": "other"})
    made_run("otherwise", split=SPLIT | {"fingerprint": "other"})
    made_run("pre", method="mics-pretrain")
    made_run("region", Taxonomy("regions", (ClassInfo("ear", 0, "ear"), ClassInfo("nose", 1, "nose"))))
    made_run("fold", split={"fingerprint": "s", "fold": 1})
    with pytest.raises(RunError, match="cannot be compared") as error:
        compare_runs(["good", "fine", "elsewhere", "otherwise", "pre", "region", "fold"], tmp_path)
    told = str(error.value)
    for fault in (
        "'elsewhere' was trained on other data",
        "'otherwise' was trained on another split",
        "A pre-training knows no classes",
        "'region' tells 2 classes apart: ear, nose",
        "'good' tells 2 classes apart: a, b",
        "'fold' was trained with fold 1 left out",
    ):
        assert fault in told


def test_runs_of_two_folds_share_the_queries_alone(planted, tmp_path):
    planted(good=0.8, fold=0.8)
    made_run("fold", split={"fingerprint": "s", "fold": 1})
    with pytest.raises(RunError, match="cannot be compared"):
        compare_runs(["good", "fold"], tmp_path)
    # The test folder is nobody's fold.
    assert compare_runs(["good", "fold"], tmp_path, split="queries").split == "queries"


def test_runs_by_name_folder_and_pattern(tmp_path):
    for name in ("dinov2", "dinov2-2", "ablations/mlcf/base-seed0", ".dinov2-3.replaced"):
        made_run(name)
    (runs_dir() / "dinov2-4").mkdir()  # started, and not there yet
    assert [run.reference for run in named_runs(["dinov2*"])] == ["dinov2", "dinov2-2"]
    several = named_runs(["*-2", "ablations/*/*", str(runs_dir() / "dinov2"), "dinov2"])
    assert [run.reference for run in several] == ["dinov2-2", "ablations/mlcf/base-seed0", "dinov2"]
    made_run("odd[1]")
    assert [run.reference for run in named_runs(["odd[1]", "dinov2"])] == ["odd[1]", "dinov2"]  # a name that is there is no pattern
    with pytest.raises(RunError) as error:
        named_runs(["dinov2", "dino", "mlcf*"])
    assert "No run named 'dino'." in str(error.value) and "No complete run is called 'mlcf*'." in str(error.value)
    with pytest.raises(RunError, match="^No run named 'dino'"):
        named_runs(["dinov2", "dino"])
    with pytest.raises(UsageError, match="here is only dinov2"):
        named_runs(["dinov2", "dinov2"])
    for pattern in ("../*", "/tmp/*"):
        with pytest.raises(UsageError, match="out of the runs folder"):
            named_runs([pattern, "dinov2"])
    for i in range(27):
        made_run(f"many-{i}")
    with pytest.raises(UsageError, match="27 runs are too many"):
        named_runs(["many-*"])


@pytest.mark.parametrize("how", [{"split": "train"}, {"level": 0.0}, {"level": 1.5}])
def test_wrong_usage(planted, tmp_path, how):
    planted(one=0.8, other=0.8)
    with pytest.raises(UsageError):
        compare_runs(["one", "other"], tmp_path, **how)


def test_texts_are_compared_where_a_run_reads_them():
    images = part()
    answered = seen(images, 0.9, 0)
    axis = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    found = totals_of(score_subset(images, answered, texts=TextQueries(["spur", "wax"], axis)))
    asked = found["text Recall@1, finding"]
    nearest = [int((answered.vectors @ v).argmax()) for v in axis]
    assert asked.hits.tolist() == [t in images.frame["findings"][i] for t, i in zip(("spur", "wax"), nearest)] and len(asked.totals) == 2
    found = totals_of(score_subset(part(findings=False), answered))
    assert set(found) == {ACCURACY, "macro F1", "image Recall@1, class", "image MRR, class"}
