"""`entrep explain`: where a model looks in images."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from entrep_cli import console
from entrep_cli.commands import options
from entrep_cli.errors import UsageError
from entrep_cli.workspace import open_run

_ROWS = 100  # of one sheet, so that it stays a picture that programs open


def explain(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    run: options.RunName = None,
    text: Annotated[str | None, typer.Option(help="Where this finding is seen, by a text tower.", show_default=False)] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", help="What speaks for this class (default: the one predicted).", show_default=False)
    ] = None,
    by: Annotated[
        Literal["auto", "rollout", "gradient-rollout", "layer-cam", "hires-cam", "grad-cam"],
        typer.Option(help="auto: gradient-rollout for a ViT, else layer-cam. The rollouts follow the attention that ViTs have."),
    ] = "auto",
    save: Annotated[
        Path | None,
        typer.Option(help="FILE.png for all on one sheet, or a folder (default: RUN/explain, a file an image).", show_default=False),
    ] = None,
    device: options.Device = "auto",
) -> dict[str, Any]:
    """Example: entrep explain phantom/test/imgs/030*.png

    Show where a model looks: every image as the model saw it, under the heat of what speaks for the class
    it predicts, for --class, or for a --text. Heat tells what the answer rests on, not whether it is right.
    """
    import numpy as np
    import torch

    from entrep_cli.data.pixels import decode_images
    from entrep_cli.methods.explanation import explain_images
    from entrep_cli.methods.runs import load_model
    from entrep_cli.reporting.overlays import Look, explanation_sheet

    _check(len(images), text, class_name, by, save)
    opened = open_run(run)
    one_sheet = save is not None and _is_png(save)
    files = [save] * len(images) if one_sheet else _files(images, save or opened.path("explain"), _asked(text, class_name, by))
    _check_files(images, files)
    names = [row["name"] for row in opened.manifest["taxonomy"]["classes"]]
    _check_class(class_name, names)
    model = load_model(opened, device)
    place, size = model.device, model.batch_size
    vector = None if text is None else model.embed_texts([text])[0]
    pixels = torch.from_numpy(np.stack(list(decode_images(images, model.preprocess))))
    rows, looks = [], []
    with console.progress("Explaining", len(images)) as advance:
        for some in pixels.split(size):
            vectors, probabilities, _ = model.infer(some.to(place))
            predicted = probabilities.argmax(dim=1).tolist()
            shown = predicted if class_name is None else [names.index(class_name)] * len(some)
            found = explain_images(model, some, **({"classes": shown} if text is None else {"text": text}), by=by)
            for i, seen in enumerate(some):
                row = {
                    "image": str(images[len(rows)]),
                    "predicted": names[predicted[i]],
                    "probability": float(probabilities[i, predicted[i]]),
                    **(
                        {"shown": names[shown[i]], "probability_of_shown": float(probabilities[i, shown[i]])}
                        if vector is None
                        else {"shown": text, "cosine": float(vectors[i] @ vector)}
                    ),
                    "part": found.parts[i] or None,
                    "by": found.ways[i],
                    "brightest_tenth": found.brightest_tenth[i],
                }
                rows.append(row)
                looks.append(Look(seen.numpy(), found.heat[i].numpy(), _caption(row)))
            advance(len(some))

    title = f"Where run {opened.name} looks" + ("" if text is None else f" for {text!r}")
    if one_sheet:
        explanation_sheet(looks, title, save)
    else:
        for look, file in zip(looks, files):
            explanation_sheet([look], title, file)
    if cold := [Path(row["image"]).name for row in rows if not row["brightest_tenth"]]:
        console.warn(f"in {len(cold)} of {len(rows)} images nothing speaks for what is shown: {', '.join(cold)}")
    _table(f"{title}: {', '.join(dict.fromkeys(row['by'] for row in rows))}", rows, files)
    return {"run": opened.name, "text": text, "class": class_name, "images": [{**row, "file": str(f)} for row, f in zip(rows, files)]}


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


def _check_files(images: list[Path], files: list[Path]) -> None:
    """No picture may take the place of an image that is explained."""
    inputs = {image.resolve() for image in images}
    if over := [str(file) for file in dict.fromkeys(files) if file.resolve() in inputs]:
        raise UsageError("The pictures would be written over the images themselves.", faults=over, hint="name another folder with --save")


def _check_class(class_name: str | None, names: list[str]) -> None:
    if class_name is not None and class_name not in names:
        near = difflib.get_close_matches(class_name, names, 1)
        raise UsageError(
            f"The run knows no class {class_name!r}.",
            where="--class",
            hint=(f"did you mean {near[0]!r}? " if near else "") + f"its classes: {', '.join(names)}",
        )


def _is_png(save: Path) -> bool:
    return save.suffix.lower() == ".png" and not save.is_dir()


def _asked(text: str | None, class_name: str | None, by: str) -> str:
    """What a file's name says of the question, so that two questions about an image have two files."""
    return "".join(f"-{_plain(part, 40)}" for part in (text, class_name, None if by == "auto" else by) if part is not None)


def _files(images: list[Path], folder: Path, asked: str) -> list[Path]:
    """A file of its own for every image, called after it; of images of one name, the later ones are numbered."""
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


def _caption(row: dict[str, Any]) -> tuple[str, ...]:
    predicted = f"predicted: {row['predicted']} ({row['probability']:.0%})"
    if "cosine" in row:
        shown = f"shown: {row['shown']} (cosine {row['cosine']:.2f})"
    else:
        shown = f"shown: {row['shown']} ({row['probability_of_shown']:.0%})"
    by = f"by {row['by']}" + (f", of the {row['part']}" if row["part"] else "")
    heat = f"{row['brightest_tenth']:.0%} of the heat on a tenth of the picture" if row["brightest_tenth"] else "nothing speaks for it"
    return Path(row["image"]).name, predicted, shown, by, heat


def _table(title: str, rows: list[dict[str, Any]], files: list[Path]) -> None:
    parts = any(row["part"] for row in rows)
    console.table(
        title,
        ["image", "predicted", "probability", "shown", *(["part"] if parts else []), "brightest tenth", "file"],
        [
            (
                Path(row["image"]).name,
                row["predicted"],
                row["probability"],
                row["shown"],
                *([row["part"] or "-"] if parts else []),
                f"{row['brightest_tenth']:.0%}",
                file,
            )
            for row, file in zip(rows, files)
        ],
    )
    console.say(
        "Brightest tenth: the share of all heat, also of what is too little to be drawn, on the hottest tenth of the picture; "
        "10% where it looks everywhere alike, 100% where it looks nowhere else."
    )
