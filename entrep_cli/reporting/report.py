"""A run on a split as the content of a report: scores, calibration, curves, map, sheets, mistakes, papers' tables.

Nothing is trained here. What is fitted, the temperature, is fitted on the validation split alone.
"""

from __future__ import annotations

import csv
import json
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from entrep_cli import console
from entrep_cli.data.splits import split_command
from entrep_cli.errors import RunError, UsageError
from entrep_cli.evaluation.calibration import calibration_sample, reliability, with_temperature
from entrep_cli.evaluation.scored import Scored, texts_for
from entrep_cli.evaluation.selection import Temperature, select
from entrep_cli.evaluation.subsets import TextQueries, score_subset
from entrep_cli.methods.ensemble import INSIDE, MEMBERS
from entrep_cli.reporting.content import Calibration, Content, Mistake, Mistakes, learning_curves, worst_mistakes
from entrep_cli.reporting.embedding_map import embedding_map
from entrep_cli.reporting.pictures import Pictures, thumbnail
from entrep_cli.reporting.published import tables_beside
from entrep_cli.reporting.sheets import sheets_of
from entrep_cli.workspace import CONFIG, METRICS, Run

N_MISTAKES = 12
_MISTAKE_SIDE = 176  # pixels of a picture beside its attention map

# (N, 3, H, W) uint8 pixels and the (N,) classes that were answered -> pictures under their maps, and the method of the maps.
Explain = Callable[[np.ndarray, list[int]], tuple[list[Any], str]]


def gather(scored: Scored, *, private: bool = False, top_k: int = 6, flags: str = "") -> Content:
    """The content of the report of a run on a split; the validation split is embedded too where that is not done yet.

    Args:
        private: no names, texts, places or pictures of the data.
        top_k: answers on a contact sheet.
        flags: options as they are typed, for the commands to run next; left out where they are private.
    """
    try:
        temperature = select(scored.run, scored.model, (scored.catalog, scored.division), temperature=True).temperature
    except RunError:  # no validation split, or none that no member was trained on
        temperature = None
    texts = texts_for(scored.model, scored.images)
    stages: list[dict[str, Any]] = []
    decisions = scored.model.decide_images(scored.images.paths, scored.images.digests)
    if decisions is not None:
        import torch

        stages = scored.model.stage_counts(decisions, torch.from_numpy(scored.images.targets))
    return content_of(
        scored,
        temperature=temperature,
        texts=texts,
        stages=stages,
        explain=None if private else lambda pixels, classes: _attention(scored, pixels, classes),
        private=private,
        top_k=top_k,
        flags=flags,
    )


def content_of(
    scored: Scored,
    *,
    temperature: Temperature | None = None,
    texts: TextQueries | None = None,
    stages: list[dict[str, Any]] | None = None,
    explain: Explain | None = None,
    private: bool = False,
    top_k: int = 6,
    flags: str = "",
) -> Content:
    """The same from what is given; nothing is embedded.

    Args:
        temperature: what the run's validation split chooses; None where it has none.
        stages: of a hybrid.
        explain: draws attention maps; UsageError where the model has none, which the report then says.
    """
    images, embeddings, run, manifest = scored.images, scored.embeddings, scored.run, scored.run.manifest
    pictures = Pictures(images.paths, images.images, private)
    scores = score_subset(images, embeddings, texts=texts)
    console.say(f"Drawing the map of {len(images)} images.")
    # Paths are private too; the name alone is enough for a run among the others.
    place, reference, flags = (f"runs/{run.name}", run.name, "") if private else (str(run.folder), run.reference, flags)
    recipe = run.path(CONFIG).read_text("utf-8") if run.path(CONFIG).is_file() else ""
    return Content(
        run=run.name,
        split=scored.split + ("" if scored.fold is None else f", fold {scored.fold}"),
        n_images=len(images),
        n_groups=len(set(images.groups)),
        data=", ".join(_layouts(manifest, private)),
        facts=facts(manifest, recipe, private),
        recipe="" if private else recipe,
        commands=remade(manifest, place, run.name, flags, _members(run), str(_toml(recipe).get("weights", ""))),
        next_commands=tuple(f"entrep {command}{flags} --run {shlex.quote(reference)}" for command in _NEXT),
        scores=scores,
        calibration=_calibration(scored, temperature),
        curves=_curves(scored),
        map=embedding_map(embeddings.vectors, images.targets, images.taxonomy, pictures),
        sheets=sheets_of(images, embeddings, scores, pictures, texts=texts, top_k=top_k),
        mistakes=mistakes_of(scored, pictures, explain),
        stages=tuple(stages or ()),
        published=tables_beside(scored, scores),
        notes=scored.notes,
        private=private,
        made=str(manifest.get("completed", ""))[:16].replace("T", " "),
    )


_NEXT = ("predict --track 1", "predict --track 2", "evaluate --class-aware soft")


def remade(
    manifest: Mapping[str, Any], place: str, name: str, flags: str, members: Sequence[str] = (), weights: str = ""
) -> tuple[str, ...]:
    """The commands that split and train as for this run, from its manifest.

    Args:
        place: of the run folder. flags: options as they are typed, to name the dataset.
        members, weights: of an ensemble, as it refers to them, and how they were weighted.
    """
    split, commands = manifest.get("split", {}), []
    if split.get("fingerprint"):
        commands.append(split_command(split) + flags)
    if members and not members[0].startswith(INSIDE):
        commands.append(f"entrep ensemble {shlex.join(members)} --weights {weights} --name {shlex.quote(name + '-again')}{flags}")
        return tuple(commands)
    fold = " --folds" if members else "" if split.get("fold") is None else f" --fold {split['fold']}"
    config = shlex.quote(str(PurePath(place, *(members[:1]), CONFIG)))
    commands.append(
        f"entrep train --recipe {config}{fold} --precision {manifest['precision']} --name {shlex.quote(name + '-again')}{flags}"
    )
    return tuple(commands)


def facts(manifest: Mapping[str, Any], recipe: str, private: bool) -> dict[str, dict[str, str]]:
    """What a run is, heading by heading: from its manifest and its recipe."""
    split, data, settings = manifest.get("split", {}), manifest.get("data", {}), _toml(recipe)
    images = data.get("images", {})
    ratios = "/".join(f"{ratio:g}" for ratio in split.get("ratios") or ())
    of_run = {
        "method": manifest["method"],
        **{key: str(settings[key]) for key in ("tune", "target", "seed") if key in settings},
        "learned parameters": f"{manifest.get('parameters', 0):,}",
        "best epoch": str(manifest["epoch"]) if manifest.get("epoch") else "none: not trained in epochs",
        "training": _duration(manifest.get("seconds")),
        "completed": str(manifest.get("completed", ""))[:19].replace("T", " "),
    }
    of_data = {
        "layout": ", ".join(_layouts(manifest, private)),
        "fingerprint": str(data.get("catalog", "")),
        **{f"{name} images": f"{n:,}" for name, n in images.items()},
        "split": f"{split['folds']} folds" if split.get("folds") else ratios,
        "split seed": str(split.get("seed", "")),
        "test fold": "" if split.get("fold") is None else str(split["fold"]),
    }
    of_machine = {"device": str(manifest.get("device", "")), "precision": str(manifest.get("precision", ""))}
    versions = {"entrep": manifest.get("entrep", ""), **manifest.get("versions", {})}
    tables = {
        "Run": of_run,
        "Data": of_data,
        "Weights it started from": _flat(manifest.get("weights", {}), private),
        "Validation": {name.replace("_", " "): f"{value:.4f}" for name, value in manifest.get("validation", {}).items()},
        "Machine": {**of_machine, **{name: str(version) for name, version in versions.items()}},
    }
    return {heading: {name: value for name, value in rows.items() if value} for heading, rows in tables.items() if any(rows.values())}


def mistakes_of(scored: Scored, pictures: Pictures, explain: Explain | None, n: int = N_MISTAKES) -> Mistakes:
    """The most confident wrong answers, each with its attention map."""
    images, probabilities = scored.images, np.asarray(scored.embeddings.probabilities)
    targets, names = images.targets, images.taxonomy.names
    rows = worst_mistakes(probabilities, targets, n)
    answers = probabilities.argmax(axis=1)
    n_wrong = int((answers != targets).sum())
    drawn, by, reason = [""] * len(rows), "", ""
    if len(rows) and explain is not None:
        from entrep_cli.data.pixels import decode_images

        try:
            pixels = np.stack(list(decode_images([images.paths[i] for i in rows], scored.model.preprocess)))
            overlays, by = explain(pixels, answers[rows].tolist())
            drawn = [thumbnail(picture, _MISTAKE_SIDE) for picture in overlays]
        except UsageError as error:
            reason = error.what
    shown = tuple(
        Mistake(
            pictures.name(i),
            names[targets[i]],
            names[answers[i]],
            float(probabilities[i, targets[i]]),
            float(probabilities[i, answers[i]]),
            pictures(i),
            attention,
        )
        for i, attention in zip(map(int, rows), drawn)
    )
    return Mistakes(shown, n_wrong, by, reason)


def _attention(scored: Scored, pixels: np.ndarray, classes: list[int]) -> tuple[list[Any], str]:
    import torch

    from entrep_cli.methods.explanation import explain_images
    from entrep_cli.methods.runs import load_model
    from entrep_cli.reporting.overlays import overlay

    # Loaded again: the scored one may be of a lower precision, and explanations need float32.
    model = load_model(scored.run, str(scored.model.device))
    explained = explain_images(model, torch.from_numpy(pixels), classes=classes)
    return [overlay(picture, heat) for picture, heat in zip(pixels, np.asarray(explained.heat))], explained.by


def _calibration(scored: Scored, temperature: Temperature | None) -> Calibration:
    probabilities, targets = np.asarray(scored.embeddings.probabilities), scored.images.targets
    plain, groups = reliability(probabilities, targets), scored.images.groups
    scores = calibration_sample(probabilities, targets, groups).intervals()
    if temperature is None:
        return Calibration(plain, scores)
    tempered = with_temperature(probabilities, temperature.value)
    tempered_scores = calibration_sample(tempered, targets, groups).intervals()
    is_val = scored.split == "val"
    return Calibration(plain, scores, reliability(tempered, targets), tempered_scores, temperature.value, temperature.images, is_val)


def _members(run: Run) -> list[str]:
    """Of an ensemble the runs it is made of, as it refers to them."""
    path = run.path(MEMBERS)
    return [member["run"] for member in json.loads(path.read_text("utf-8"))] if path.is_file() else []


def _curves(scored: Scored):
    path = scored.run.path(METRICS)
    if not path.is_file():
        return None
    with open(path, encoding="utf-8", newline="") as file:
        return learning_curves(list(csv.DictReader(file)), int(scored.run.manifest.get("epoch") or 0))


def _layouts(manifest: Mapping[str, Any], private: bool) -> list[str]:
    """`contest in train`; the folder is left out where it is private."""
    return [layout.split(" in ")[0] if private else layout for layout in manifest.get("data", {}).get("layouts", [])]


def _flat(table: Mapping[str, Any], private: bool, prefix: str = "") -> dict[str, str]:
    """A nested table as names and texts; places of files are left out where they are private."""
    rows: dict[str, str] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows |= _flat(value, private, f"{name}, ")
        elif private and isinstance(value, str) and ("/" in value or "\\" in value):
            rows[name] = "a file"
        elif key == "sha256" and value:
            rows[name] = str(value)[:12]  # enough to identify a file; run.json has all of it
        elif value not in (None, "", []):
            rows[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, (list, tuple)) else str(value)
    return rows


def _toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


def _duration(seconds: float | None) -> str:
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
