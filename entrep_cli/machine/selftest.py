"""The main job in small: does everything that entrep does work on this machine?"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# As small as one CLIP can be and still have the three tracks to answer; it learns nothing worth a score.
IMAGES, TEST_IMAGES = 28, 14
_SMALL = {"batch_size": 35, "image": {"size": 64}, "train": {"epochs": 2, "batch_size": 14, "patience": 0}}


def self_test(device: str = "auto", on_step: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Draw a phantom dataset, split it, train a small CLIP on it for a few steps, answer and check the three tracks.

    All in a temporary folder, without any output; nothing under `runs/` is touched.

    Args:
        on_step: called with the name of each step before it starts.

    Returns:
        {"seconds", "steps": {name: seconds}, "queries"}.

    Raises:
        Exception: of any kind, from the step that failed.
    """
    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.phantom import write_phantom
    from entrep_cli.data.splits import make_split, write_split
    from entrep_cli.methods import method_class
    from entrep_cli.methods.runs import train_run
    from entrep_cli.recipes.recipe import build_recipe, read_recipe
    from entrep_cli.retrieval.sets import open_model
    from entrep_cli.submission.answers import answer_track
    from entrep_cli.submission.checks import check_submission
    from entrep_cli.submission.tracks import write_submission
    from entrep_cli.workspace import new_run

    steps: dict[str, float] = {}
    started = time.monotonic()

    @contextlib.contextmanager
    def step(name: str) -> Iterator[None]:
        if on_step:
            on_step(name)
        start = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
        steps[name] = round(time.monotonic() - start, 2)

    with tempfile.TemporaryDirectory(prefix="entrep-doctor-", ignore_cleanup_errors=True) as place, _runs_in(Path(place, "runs")):
        data = Path(place, "data")
        with step("draw"):
            write_phantom(data, images=IMAGES, test_images=TEST_IMAGES, size=(320, 240), workers=1)
        with step("split"):
            catalog = Catalog.read(data)
            split = make_split(catalog, ratios=(75, 25, 0), small_to_train=True)
            write_split(split, data)
        with step("train"):
            recipe = build_recipe(method_class("clip-lora").Recipe, read_recipe("tiny"), _SMALL)
            run = new_run("clip-lora", "selftest")
            train_run(catalog, split, recipe, run, device=device)
        with step("predict and validate"):
            model = open_model(run, device)
            classes = {c.name: c.id for c in model.taxonomy.classes}
            queries = 0
            for track in (1, 2, 3):
                answered = answer_track(run, model, data, track)
                path, _ = write_submission(Path(place, f"track{track}.zip"), track, answered.answers, answered.ranked)
                report = check_submission(path, track, queries=answered.queries, gallery=answered.gallery, classes=classes)
                if not report.ok:
                    raise RuntimeError(f"the submission of track {track} is not valid: {'; '.join(report.lines())}")
                queries += len(answered.queries)
    return {"seconds": round(time.monotonic() - started, 1), "steps": steps, "queries": queries}


@contextlib.contextmanager
def _runs_in(folder: Path) -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in ("ENTREP_RUNS", "ENTREP_DATA") if name in os.environ}
    os.environ["ENTREP_RUNS"] = str(folder)
    try:
        yield
    finally:
        del os.environ["ENTREP_RUNS"]
        os.environ.update(before)
