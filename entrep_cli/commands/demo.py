"""`entrep demo`: the main job, from nothing to scored submissions, on phantom data."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import entrep_cli as entrep
from entrep_cli import console
from entrep_cli.errors import RunError
from entrep_cli.results import Result
from entrep_cli.workspace import writing_to

RECIPE = "tiny"
FINDING = "septal spur"
TRUTHS = {1: "truth_cls.json", 2: "truth_i2i.json", 3: "truth_t2i.json"}


def demo(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder for the data and all results.")] = Path("runs/demo"),
    images: Annotated[int, typer.Option(help="Training images to draw.", min=140)] = 700,
    test_images: Annotated[int, typer.Option(help="Test images to draw.", min=35)] = 210,
) -> dict[str, Any]:
    """Example: entrep demo

    Draw a phantom dataset and do the whole job on it: split, train one model for the three tracks,
    evaluate, embed, index, search by image and by text, predict, validate and score each track. Each
    command is printed as you would type it. Takes some minutes on two cores.
    """
    if folder.exists() and any(folder.iterdir()):
        hint = f"remove it (rm -r {shlex.quote(str(folder))}) or name another: entrep demo FOLDER"
        raise RunError("The demo's folder is not empty.", where=folder, hint=hint)
    data, test, runs = folder / "data", folder / "data" / "test", folder / "runs"
    started = time.monotonic()
    zips = {track: runs / "clip-lora" / "submissions" / f"track{track}.zip" for track in TRUTHS}
    scores: dict[int, dict[str, Any]] = {}
    with writing_to(runs):
        _step(["synth", data, "--images", images, "--test-images", test_images], entrep.synth, data, images=images, test_images=test_images)
        console.say("", f"$ export ENTREP_DATA={shlex.quote(str(data))} ENTREP_RUNS={shlex.quote(str(runs))}")
        _step(["split"], entrep.split, data=data)
        _step(["train", "clip-lora", "--recipe", RECIPE], entrep.train, "clip-lora", recipe=RECIPE, data=data)
        _step(["evaluate"], entrep.evaluate, data=data)
        _step(["embed"], entrep.embed, data=data)
        _step(["index"], entrep.index)
        query, sheet = sorted((test / "imgs").iterdir())[0], folder / "search.png"
        line = ["search", query, "--top-k", 5, "--mask-groups", "--save", sheet]
        _step(line, entrep.search, str(query), top_k=5, mask_groups=True, save=sheet)
        _step(["search", FINDING, "--top-k", 5], entrep.search, FINDING, top_k=5)
        for track, truth in TRUTHS.items():
            mask = track == 2
            _step(["predict", "--track", track, *["--mask-groups"] * mask], entrep.predict, track=track, data=data, mask_groups=mask)
            checked = _step(["validate", zips[track], "--track", track], entrep.validate, zips[track], track=track, data=data)
            for line in checked.warnings():
                console.warn(line)
            if checked.upload:
                console.say(f"It can be uploaded as it is: {checked.upload}")
            line = ["evaluate", "--submission", zips[track], "--truth", test / truth, "--track", track]
            result = _step(line, entrep.evaluate, submission=zips[track], truth=test / truth, track=track, data=data)
            scores[track] = result.to_dict()
    classes = scores[1]["classification"]
    console.table(
        f"Demo on phantom data, {time.monotonic() - started:.0f} s (a test bench: it says nothing about real endoscopy)",
        ["result", "value"],
        [
            ("track 1 accuracy", classes["accuracy"]["value"]),
            ("track 1 macro F1", classes["macro"]["f1"]["value"]),
            ("track 2 Recall@1 by class, same exam masked", scores[2]["retrieval"]["class"]["recall@1"]["value"]),
            ("track 3 Recall@1 by finding", scores[3]["retrieval"]["finding"]["recall@1"]["value"]),
            ("the same, of an image drawn by chance", scores[3]["chance"]["finding"]),
            ("submissions", zips[1].parent),
            ("run", zips[1].parent.parent),
            ("a search, drawn", sheet),
        ],
    )
    console.next_commands("entrep split --data YOUR_DATA", "entrep train --data YOUR_DATA", "entrep --help")
    submissions = {str(track): str(path) for track, path in zips.items()}
    return {"folder": str(folder), "submissions": submissions, "scores": {str(track): values for track, values in scores.items()}}


def _step(line: list[object], function: Callable[..., Result], *arguments: Any, **keywords: Any) -> Any:
    """One command, printed as it is typed, with its tables."""
    console.say("", f"$ entrep {shlex.join(map(str, line))}")
    result = function(*arguments, **keywords)
    console.show(result)
    for note in result.notes:
        console.warn(note)
    if result.files:
        console.say(f"Written: {', '.join(map(str, result.files))}")
    return result
