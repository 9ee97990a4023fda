"""`entrep demo`: the main job, from nothing to scored submissions, on phantom data."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from entrep_cli import console
from entrep_cli.errors import RunError

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
    from entrep_cli.commands.embed import embed
    from entrep_cli.commands.evaluate import evaluate
    from entrep_cli.commands.index import index
    from entrep_cli.commands.predict import predict
    from entrep_cli.commands.search import search
    from entrep_cli.commands.split import split
    from entrep_cli.commands.synth import synth
    from entrep_cli.commands.train import train
    from entrep_cli.commands.validate import validate

    if folder.exists() and any(folder.iterdir()):
        hint = f"remove it (rm -r {shlex.quote(str(folder))}) or name another: entrep demo FOLDER"
        raise RunError("The demo's folder is not empty.", where=folder, hint=hint)
    data, test, runs = folder / "data", folder / "data" / "test", folder / "runs"
    started = time.monotonic()
    before = os.environ.get("ENTREP_RUNS")
    os.environ["ENTREP_RUNS"] = str(runs)
    zips = {track: runs / "clip-lora" / "submissions" / f"track{track}.zip" for track in TRUTHS}
    scored: dict[int, dict[str, Any]] = {}

    def step(line: list[object], command, **arguments: Any) -> dict[str, Any]:
        console.say("", f"$ entrep {shlex.join(map(str, line))}")
        with _without_next():
            return command(**arguments)

    try:
        line = ["synth", data, "--images", images, "--test-images", test_images]
        step(line, synth, folder=data, images=images, test_images=test_images)
        console.say("", f"$ export ENTREP_DATA={shlex.quote(str(data))} ENTREP_RUNS={shlex.quote(str(runs))}")
        step(["split"], split, data=data)
        step(["train", "clip-lora", "--recipe", RECIPE], train, method="clip-lora", recipe=RECIPE, data=data)
        step(["evaluate"], evaluate, data=data)
        step(["embed"], embed, data=data)
        step(["index"], index)
        query = sorted((test / "imgs").iterdir())[0]
        sheet = folder / "search.png"
        line = ["search", query, "--top-k", 5, "--mask-groups", "--save", sheet]
        step(line, search, query=str(query), top_k=5, mask_groups=True, save=sheet)
        step(["search", FINDING, "--top-k", 5], search, query=FINDING, top_k=5)
        for track, truth in TRUTHS.items():
            masked = track == 2
            line = ["predict", "--track", track, *(["--mask-groups"] if masked else [])]
            step(line, predict, track=track, data=data, mask_groups=masked)
            step(["validate", zips[track], "--track", track], validate, file=zips[track], track=track, data=data)
            line = ["evaluate", "--submission", zips[track], "--truth", test / truth, "--track", track]
            scored[track] = step(line, evaluate, submission=zips[track], truth=test / truth, track=track, data=data)
    finally:
        if before is None:
            del os.environ["ENTREP_RUNS"]
        else:
            os.environ["ENTREP_RUNS"] = before
    classes = scored[1]["classification"]
    by_class = scored[2]["retrieval"]["class"]
    by_finding = scored[3]["retrieval"]["finding"]
    console.table(
        f"Demo on phantom data, {time.monotonic() - started:.0f} s (a test bench: it says nothing about real endoscopy)",
        ["result", "value"],
        [
            ("track 1 accuracy", classes["accuracy"]["value"]),
            ("track 1 macro F1", classes["macro"]["f1"]["value"]),
            ("track 2 Recall@1 by class, own exam masked", by_class["recall@1"]["value"]),
            ("track 3 Recall@1 by finding", by_finding["recall@1"]["value"]),
            ("the same, of an image drawn by chance", scored[3]["chance"]["finding"]),
            ("submissions", zips[1].parent),
            ("run", zips[1].parent.parent),
            ("a search, drawn", sheet),
        ],
    )
    console.next_commands(
        "entrep split --data YOUR_DATA",
        "entrep train --data YOUR_DATA",
        "entrep --help",
    )
    submissions = {str(track): str(path) for track, path in zips.items()}
    return {"folder": str(folder), "submissions": submissions, "scores": {str(track): scores for track, scores in scored.items()}}


@contextlib.contextmanager
def _without_next() -> Iterator[None]:
    """Inside it no command says what to run next: the demo runs it."""
    said, console.next_commands = console.next_commands, lambda *commands: None
    try:
        yield
    finally:
        console.next_commands = said
