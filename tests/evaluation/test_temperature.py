"""The temperature of a run: from its own validation part alone, kept, and fitted again where it is stale."""

from __future__ import annotations

import numpy as np
import pytest

from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import make_split
from entrep_cli.errors import RunError
from entrep_cli.evaluation.temperature import run_temperature, temperature_on
from entrep_cli.retrieval.embeddings import embed_items
from entrep_cli.retrieval.sets import catalog_items
from entrep_cli.workspace import Run
from tests.retrieval.test_class_weight import Brightness, completed, never
from tests.tiny import make_contest


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    return Catalog.read(make_contest(tmp_path / "data", per_class=12, classes=("nose-left", "nose-right", "throat"), groups=2).root)


def test_it_is_fitted_on_validation_kept_and_fitted_again_for_another_model_or_split(tmp_path, catalog):
    split, model = make_split(catalog, ratios=(1, 1, 1)), Brightness(catalog.taxonomy)
    run = completed(tmp_path / "runs" / "r", catalog, split)
    found = run_temperature(run, model, lambda: (catalog, split))
    val = catalog.subset(split.images("val"))
    assert sum(model.seen) == len(val) == found.images  # the test part was not looked at
    seen = embed_items(model, catalog_items(val))
    assert found == temperature_on(seen.probabilities, val.targets) and found.nll_calibrated <= found.nll + 1e-3
    assert run_temperature(run, model, never) == found
    flipped = run_temperature(run, model, lambda: (catalog, split), flip=True)
    assert flipped == temperature_on(embed_items(model, catalog_items(val), flip=True).probabilities, val.targets) != found
    assert run_temperature(run, model, never) == found and run_temperature(run, model, never, flip=True) == flipped
    run.check_files()  # it is no part of the model

    run.path("calibration.json").rename(tmp_path / "kept")
    other = completed(run.folder, catalog, split, b"other weights")
    (tmp_path / "kept").rename(run.path("calibration.json"))
    with pytest.raises(AssertionError, match="was read"):
        run_temperature(other, model, never)
    run_temperature(other, model, lambda: (catalog, split))
    run.path("calibration.json").write_text('{"key": ')
    assert run_temperature(other, model, lambda: (catalog, split)) == found


def test_there_is_none_without_a_validation_part_of_its_own(tmp_path, catalog):
    split, model = make_split(catalog, ratios=(1, 1, 1)), Brightness(catalog.taxonomy)
    strange = make_split(catalog, ratios=(2, 1, 1), seed=3)
    run = completed(tmp_path / "runs" / "r", catalog, split)
    with pytest.raises(RunError, match="cannot be calibrated: the dataset or its split") as caught:
        run_temperature(run, model, lambda: (catalog, strange))
    assert "entrep evaluate --run" in caught.value.hint and not run.path("calibration.json").exists()

    folds = make_split(catalog, folds=3)
    whole = Run(tmp_path / "runs" / "folds")
    whole.folder.mkdir()
    made = {"data": {"catalog": catalog.fingerprint}, "split": {"fingerprint": folds.fingerprint, "folds": 3, "fold": None}}
    whole.mark_complete({"taxonomy": catalog.taxonomy.as_dict(), **made})
    with pytest.raises(RunError, match="every fold"):
        run_temperature(whole, model, lambda: (catalog, folds))


def test_a_part_with_one_class_leaves_the_probabilities_as_they_are():
    found = temperature_on(np.array([[0.7, 0.3], [0.6, 0.4]]), np.array([0, 0]))
    assert found.value == 1 and found.nll == pytest.approx(found.nll_calibrated)
