"""`explain`: where a model looks in images."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from entrep_cli import console
from entrep_cli.errors import UsageError
from entrep_cli.results import Result, Table
from entrep_cli.workspace import open_run

By = Literal["auto", "rollout", "gradient-rollout", "layer-cam", "hires-cam", "grad-cam"]
_ROWS = 100  # of one sheet, so that programs can still open the picture


@dataclass(frozen=True)
class Explanation(Result):
    """Where a run looks in images.

    Attributes:
        text, class_name: what was asked about; without either the class that is predicted.
        images: of each image its path, the class `predicted` with its `probability`, what is `shown` with its
            `probability_of_shown` or `cosine`, the `component` of the model, `by` which way, `brightest_tenth` (fraction
            of all heat on the hottest tenth of the picture, also of heat too weak to be drawn), and the `file` drawn.
    """

    run: str
    text: str | None
    class_name: str | None
    images: tuple[dict[str, Any], ...]

    @property
    def title(self) -> str:
        return f"Where run {self.run} looks" + ("" if self.text is None else f" for {self.text!r}")

    def tables(self) -> list[Table]:
        keys = ["image", "predicted", "probability", "shown", "component", "brightest_tenth", "file"]
        if not any(row["component"] for row in self.images):
            keys.remove("component")
        cells = [
            {
                **row,
                "image": Path(row["image"]).name,
                "component": row["component"] or "-",
                "brightest_tenth": f"{row['brightest_tenth']:.0%}",
            }
            for row in self.images
        ]
        title = f"{self.title}: {', '.join(dict.fromkeys(row['by'] for row in self.images))}"
        return [Table(title, [key.replace("_", " ") for key in keys], [tuple(row[key] for key in keys) for row in cells])]

    def to_dict(self) -> dict[str, Any]:
        return {"run": self.run, "text": self.text, "class": self.class_name, "images": list(self.images)}


def explain(
    images: Sequence[str | Path],
    *,
    run: str | None = None,
    text: str | None = None,
    class_: str | None = None,
    by: By = "auto",
    save: str | Path | None = None,
    device: str = "auto",
) -> Explanation:
    """Draw every image as the model saw it, under the heat of what speaks for a class or a text.

    Args:
        images: files.
        run: by name or folder; None for the one that completed last.
        text, class_: what to look for; without either the class that is predicted.
        by: `auto` is gradient-rollout for a ViT and layer-cam for others.
        save: a PNG for all on one sheet, or a folder; None for the run's `explain`. device: where the model computes.

    Raises:
        UsageError: options that do not go together, a class that the run does not know, a way that the model does not have.
        DataError: lists the images that cannot be read.
    """
    paths, target = [Path(image) for image in images], None if save is None else Path(save)
    _check(len(paths), text, class_, by, target)
    opened = open_run(run)
    sheet = target if target is not None and _is_png(target) else None
    files = [sheet] * len(paths) if sheet else _files(paths, target or opened.path("explain"), _asked(text, class_, by))
    inputs = {path.resolve() for path in paths}
    if over := [str(file) for file in dict.fromkeys(files) if file.resolve() in inputs]:
        raise UsageError("The pictures would be written over the images themselves.", faults=over, hint="name another folder with --save")
    names = [row["name"] for row in opened.manifest["taxonomy"]["classes"]]
    if class_ is not None and class_ not in names:
        near = difflib.get_close_matches(class_, names, 1)
        hint = (f"did you mean {near[0]!r}? " if near else "") + f"its classes: {', '.join(names)}"
        raise UsageError(f"The run knows no class {class_!r}.", where="--class", hint=hint)
    import numpy as np
    import torch

    from entrep_cli.data.pixels import decode_images
    from entrep_cli.methods.explanation import explain_images
    from entrep_cli.methods.runs import load_model
    from entrep_cli.reporting.overlays import Look, explanation_sheet

    model = load_model(opened, device)
    pixels = torch.from_numpy(np.stack(list(decode_images(paths, model.preprocess))))
    rows: list[dict[str, Any]] = []
    looks: list[Look] = []
    vector = None if text is None else model.embed_texts([text])[0]
    with console.progress("Explaining", len(paths)) as advance:
        for views in pixels.split(model.batch_size):
            answer = model.infer(views.to(model.device))
            predicted = answer.probabilities.argmax(dim=1).tolist()
            shown = predicted if class_ is None else [names.index(class_)] * len(views)
            explained = explain_images(model, views, **({"classes": shown} if text is None else {"text": text}), by=by)
            for i, probabilities in enumerate(answer.probabilities):
                of_class = {"shown": names[shown[i]], "probability_of_shown": float(probabilities[shown[i]])}
                row = {
                    "image": str(paths[len(rows)]),
                    "predicted": names[predicted[i]],
                    "probability": float(probabilities[predicted[i]]),
                    **(of_class if vector is None else {"shown": text, "cosine": float(answer.embeddings[i] @ vector)}),
                    "component": explained.components[i] or None,
                    "by": explained.ways[i],
                    "brightest_tenth": explained.brightest_tenth[i],
                    "file": str(files[len(rows)]),
                }
                rows.append(row)
                looks.append(Look(views[i].numpy(), explained.heat[i].numpy(), _caption(row)))
            advance(len(views))
    result = Explanation(opened.name, text, class_, tuple(rows))
    for some, file in [(looks, sheet)] if sheet else [([look], file) for look, file in zip(looks, files)]:
        explanation_sheet(some, result.title, file)
    if cold := [Path(row["image"]).name for row in rows if not row["brightest_tenth"]]:
        console.warn(f"in {len(cold)} of {len(rows)} images nothing speaks for what is shown: {', '.join(cold)}")
    return result


def _caption(row: dict[str, Any]) -> tuple[str, ...]:
    """Lines beside the picture."""
    certainty = f"cosine {row['cosine']:.2f}" if "cosine" in row else f"{row['probability_of_shown']:.0%}"
    by = f"by {row['by']}" + (f", of the {row['component']}" if row["component"] else "")
    heat = f"{row['brightest_tenth']:.0%} of the heat on a tenth of the picture" if row["brightest_tenth"] else "nothing speaks for it"
    predicted = f"predicted: {row['predicted']} ({row['probability']:.0%})"
    return Path(row["image"]).name, predicted, f"shown: {row['shown']} ({certainty})", by, heat


def _check(n_images: int, text: str | None, class_name: str | None, by: str, save: Path | None) -> None:
    """What no run is needed to refuse."""
    if text is not None and class_name is not None:
        raise UsageError("--text and --class are two questions.", hint="leave one of them out")
    if text is not None and by == "rollout":
        raise UsageError("Attention rollout knows no text: it has one map for all questions.", hint="--by gradient-rollout, or layer-cam")
    if save is None or save.is_dir():
        return
    if save.exists() and not _is_png(save):
        raise UsageError("The pictures cannot be written over that file.", where=save, hint="--save FILE.png, or a folder")
    if _is_png(save) and n_images > _ROWS:
        raise UsageError(f"{n_images} images are too many for one sheet of {_ROWS} or fewer.", hint="name a folder with --save")


def _is_png(save: Path) -> bool:
    return save.suffix.lower() == ".png" and not save.is_dir()


def _asked(text: str | None, class_name: str | None, by: str) -> str:
    """What a file's name says of the question, so that two questions about an image have two files."""
    return "".join(f"-{_plain(word, 40)}" for word in (text, class_name, None if by == "auto" else by) if word is not None)


def _files(images: list[Path], folder: Path, asked: str) -> list[Path]:
    """A separate file for every image, called after it; of images of one name, the later ones are numbered."""
    taken: set[str] = set()
    files = []
    for image in images:
        stem = name = f"{_plain(image.stem, 80)}{asked}"
        number = 1
        while name.lower() in taken:
            name = f"{stem}-{(number := number + 1)}"
        taken.add(name.lower())
        files.append(folder / f"{name}.png")
    return files


def _plain(text: str, most: int) -> str:
    """Letters, digits and a few marks: a name for a file that no file system, shell or page takes for more."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("._")[:most] or "image"
