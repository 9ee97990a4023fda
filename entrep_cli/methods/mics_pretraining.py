"""The pre-training of `mics`: both encoders learn from training images, and no label is read (MICS, arXiv 2509.17492).

Which images those are (`gather`), and how a run is made of them (`pretrain_run`). The losses are those of
`models.mics`; `methods.mics` goes on with the encoders, and `dinov2` may start from the white-light one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from entrep_cli import console
from entrep_cli.data.augment import AugmentSettings, augment
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.files import Names, scan
from entrep_cli.data.frames import pd
from entrep_cli.data.groups import name_group
from entrep_cli.data.images import Preprocess, raise_image_faults
from entrep_cli.data.layouts import NARROW, WHITE, split_modality
from entrep_cli.data.modalities import NarrowBand
from entrep_cli.data.pixels import load_pixels, probe_images
from entrep_cli.data.splits import Split
from entrep_cli.data.taxonomy import ClassInfo, Taxonomy
from entrep_cli.data.texts import casefold
from entrep_cli.errors import DataError, RunError
from entrep_cli.methods.base import save_tensors
from entrep_cli.methods.runs import STARTED, check_started, started_on, versions
from entrep_cli.models.backbones import Backbone, BackboneSettings
from entrep_cli.models.device import autocast, choose_device, choose_precision, make_deterministic
from entrep_cli.models.inputs import ImageSettings
from entrep_cli.models.mics import MicsPretraining, PretrainingSettings
from entrep_cli.models.mics_encoders import MODALITIES, create_encoders
from entrep_cli.recipes.recipe import Recipe, recipe_toml
from entrep_cli.training.loop import LoopResult, LoopSettings, end_training, epoch_generator, fit
from entrep_cli.training.sampling import batches
from entrep_cli.version import __version__
from entrep_cli.workspace import CONFIG, Run, fingerprint, trained_on, write_json_atomic, write_text_atomic

IMAGES = "images.csv"  # what a pre-training has seen
LOSSES = ("reconstruction", "consistency", "alignment")
MONITOR = "val_score"  # less the held-out loss: the loop keeps the epoch with the highest
_SHOWN = 4  # held-out images in a picture of reconstructions
# A view that is flipped is one more view of the same image: of what it shows nothing is said.
_NO_CLASSES = Taxonomy("no classes", (ClassInfo("any", 0, "any", "any"),))

Second = Literal["real", "pseudo"]


class Pictures(Protocol):
    """Who draws a pre-training (`experiments.mics`): what is drawn lies above what is trained."""

    def reconstructions(self, epoch: int, columns: list[np.ndarray], real: bool) -> None:
        """Of held-out images (n, 3, H, W) uint8: white light as it is, masked, drawn; then narrow band, and whether one of it is real."""

    def losses(self, kept: int) -> None:
        """The curves of `metrics.csv`; `kept` is the epoch whose weights are kept."""


class PretrainingSection(PretrainingSettings):
    """How the encoders are pre-trained.

    Attributes:
        held_out: fraction of the images that are left out of training and whose loss chooses the epoch; groups are not
            divided, and at least two images are left out (ours).
        pictures: number of epochs between pictures of reconstructions, drawn at the end as well; 0 draws none.
        augment: of both modalities alike (the source names none: ours).
        train: AdamW 1e-4, weight decay 0.02, cosine, 30 epochs (released configuration); the batch and the
            warm-up are ours. `backbone_learning_rate` is that of encoders which start from weights.
    """

    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    pictures: Annotated[int, Field(ge=0)] = 5
    augment: AugmentSettings = AugmentSettings(zoom=0.2, blur=0.0)
    train: LoopSettings = LoopSettings(
        epochs=30, patience=0, batch_size=32, learning_rate=1e-4, backbone_learning_rate=1e-4, weight_decay=0.02, balance="none"
    )

    @field_validator("train")
    @classmethod
    def _reads_no_labels(cls, train: LoopSettings) -> LoopSettings:
        if train.balance != "none" or train.label_smoothing:
            raise ValueError("no label is read: balance is none and label_smoothing 0")
        if train.batch_size < 2:
            raise ValueError("a batch of 2 or more: the other images of it are the negatives")
        return train


class MicsPretrainingRecipe(Recipe):
    """What a pre-training is made with: the sections of a `mics` recipe that concern it."""

    method: Literal["mics-pretrain"] = "mics-pretrain"
    narrow: Second = "real"
    image: ImageSettings = ImageSettings(size=384)
    backbone: BackboneSettings = BackboneSettings(name="vit_base_patch16_384", weights="none")
    pretraining: PretrainingSection = PretrainingSection()


# ---------------------------------------------------------------- which images


def gather(catalog: Catalog | None, split: Split | None, fold: int | None, folders: Sequence[Path] = ()) -> tuple[Catalog, dict[str, Any]]:
    """The images to learn from, their labels and texts struck out, and what the manifest tells of them.

    Of the dataset these are the train part of the split, or all where there is no split yet, and the images
    without a label, but for those whose group stands in another part. Of folders all images, however deep;
    real narrow-band partners (`data.modalities`) come with their white-light image.

    Raises:
        DataError: a folder without images, or images that cannot be read; UsageError: as `Split.images`.
    """
    parts = [] if catalog is None else [_of_dataset(catalog, split, fold)]
    parts += [_of_folder(folder) for folder in folders]
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    frame = frame.drop_duplicates("digest", ignore_index=True)
    if catalog is not None and split is not None and folders:
        others = {d for part in ("val", "test") for d in catalog.subset(split.images(part, fold)).digests}
        if n := int(frame["digest"].isin(others).sum()):
            console.warn(
                f"{n} images of --images are validation or test images of the split: "
                "the scores of a run that starts from this pre-training will be too good."
            )
    about = {
        "data": {
            "layouts": [*(catalog.layouts if catalog else ()), *(f"images in {folder.name or folder}" for folder in folders)],
            "catalog": catalog.fingerprint if catalog else None,
        },
        "split": {
            "seed": split.seed if split else None,
            "ratios": list(split.ratios) if split else None,
            "folds": split.folds if split else 0,
            "groups": split.group_rule if split else None,
            "small_to_train": bool(split and split.small_to_train),
            "fold": fold,
            "fingerprint": split.fingerprint if split else None,
        },
    }
    return Catalog(frame, _NO_CLASSES), about


def _of_dataset(catalog: Catalog, split: Split | None, fold: int | None) -> Catalog:
    if split is None:
        console.warn("No split yet: all images are learned from, also those of a later validation or test split.")
        return _struck_out(catalog)
    chosen = set(split.images("train", fold))
    elsewhere = set(catalog.subset([i for part in ("val", "test") for i in split.images(part, fold)]).groups)
    unlabelled = catalog.frame[catalog.frame["label"] == ""]
    near = unlabelled["group"].isin(elsewhere)
    if n := int(near.sum()):
        console.say(f"{n} images without a label are left out: their groups belong to the validation or test split.")
    return _struck_out(catalog.subset(chosen | set(unlabelled.loc[~near, "image"])))


def _struck_out(catalog: Catalog) -> Catalog:
    """The images without what anybody has said of them; nobody after this can read a label by mistake."""
    nothing = {"label": "", "region": "", "text_en": "", "text_vi": ""}
    frame = catalog.frame.assign(**nothing).assign(findings=[()] * len(catalog))
    return replace(catalog, frame=frame, taxonomy=_NO_CLASSES)


def _of_folder(folder: Path) -> Catalog:
    if not folder.is_dir():
        raise DataError("No such folder.", where=folder, hint="--images names a folder of images")
    tree = scan(folder)
    siblings = {(f.parent, *map(casefold, split_modality(f.name))) for f in tree}
    paths = []
    for place, (_, files) in tree.items():
        label, ending = map(casefold, split_modality(place.name))
        if ending != casefold(NARROW) or (place.parent, label, casefold(WHITE)) not in siblings:
            paths += [place / name for name in Names(place, files).files]
    if not paths:
        raise DataError("No images in the folder.", where=folder, hint="--images names a folder of images")
    probes, faults = probe_images(paths)
    raise_image_faults(faults, folder)
    names = [f"{folder.name}/{path.relative_to(folder).as_posix()}" for path in paths]
    rows = [
        {
            "image": name,
            "path": str(path.absolute()),
            "group": name_group(name, "auto") or f"image:{name}",
            "source": "folder",
            "digest": probe[0],
            "width": probe[1],
            "height": probe[2],
        }
        for name, path, probe in zip(names, paths, probes)
    ]
    return _struck_out(Catalog(pd.DataFrame(rows), _NO_CLASSES))


def hold_out(groups: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) bool: whole groups, drawn at random until they hold `share` of the images, and two or more.

    Raises:
        RunError: then fewer than two images would be left to learn from.
    """
    keys, group_of = np.unique(groups.astype(str), return_inverse=True)
    sizes = np.bincount(group_of)
    wanted = max(2, round(share * len(groups)))
    order = np.random.default_rng(seed).permutation(len(keys))
    n_groups = int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1
    held = np.isin(group_of, order[:n_groups])
    if (~held).sum() < 2:
        raise RunError(
            f"{len(groups)} images in {len(keys)} groups are too few to learn from and to hold some out.",
            hint="name more images with --images FOLDER",
        )
    return held


# ---------------------------------------------------------------- views of both modalities


def second_modality(catalog: Catalog, preprocess: Preprocess, narrow: Second) -> NarrowBand:
    """The narrow-band view of every image: real where there is one and `narrow` is `real`, else pseudo-NBI; it is told how many."""
    n = len(catalog)
    if narrow == "real":
        found = NarrowBand.read(catalog, preprocess)
        real = int(found.real.sum())
        console.say(f"Second modality: real NBI of {real} images, pseudo-NBI of {n - real}." if real else "Second modality: pseudo-NBI.")
        return found
    console.say("Second modality: pseudo-NBI.")
    return NarrowBand(np.zeros(n, dtype=bool), np.zeros((0, 3, preprocess.size, preprocess.size), np.uint8), np.full(n, -1))


def augment_alike(
    white: torch.Tensor,
    narrow: torch.Tensor,
    targets: torch.Tensor,
    taxonomy: Taxonomy,
    settings: AugmentSettings,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`augment` of both modalities with the same draws, so that they go on showing one place; their targets, flips worked in."""
    again = torch.Generator()
    again.set_state(generator.get_state())
    narrow, _, _ = augment(narrow, targets, taxonomy, settings, again)
    white, targets, _ = augment(white, targets, taxonomy, settings, generator)
    return white, narrow, targets


# ---------------------------------------------------------------- the run


@dataclass
class _Tally:
    """Means of the losses of one epoch, weighted by images."""

    epoch: int = 0
    n: int = 0
    sums: dict[str, float] | None = None

    def add(self, scores: dict[str, float], n: int) -> None:
        self.sums = {name: (self.sums or {}).get(name, 0.0) + value * n for name, value in scores.items()}
        self.n += n

    def means(self, prefix: str) -> dict[str, float]:
        return {f"{prefix}_{name}": (self.sums or {}).get(name, 0.0) / max(self.n, 1) for name in LOSSES}


def pretrain_run(
    images: Catalog,
    about: dict[str, Any],
    recipe: MicsPretrainingRecipe,
    run: Run,
    *,
    device: str = "auto",
    precision: str = "auto",
    resume: bool = False,
    pictures: Pictures | None = None,
) -> tuple[MicsPretraining, dict[str, Any]]:
    """Pre-train on images as `gather` gives them; the model and its manifest. The run is complete only when this returns.

    Args:
        resume: go on from the checkpoint in the run, if there is one; it ends with the same bytes.
        pictures: draws reconstructions of four held-out images as often as the recipe says, and the losses at the end.

    Raises:
        RunError: too few images, or a run to resume that was started otherwise; UsageError: no ViT that can be masked.
    """
    place, reason = choose_device(device)
    console.say(f"Device: {place} ({reason}).")
    make_deterministic()
    wanted, started = _images_of(images, about), started_on(run) if resume else {}
    if resume:
        again = f"`entrep pretrain mics --recipe {run.path(CONFIG)} --name {run.name} --resume`"
        elsewhere = "give the same --data, --images and split, or begin again with --overwrite"
        check_started(run, recipe, wanted, again=again, elsewhere=elsewhere)
    chosen, reason = (started["precision"], "as it was started") if started else choose_precision(precision, place)
    console.say(f"Precision: {chosen} ({reason}).")
    section = recipe.pretraining
    held = hold_out(images.groups, section.held_out, recipe.seed)
    torch.manual_seed(recipe.seed)
    white, narrow, origin = create_encoders(recipe.backbone, recipe.image.size)
    model = MicsPretraining(white, narrow, section).to(place)

    write_text_atomic(run.path(CONFIG), recipe_toml(recipe))
    write_json_atomic(run.path(STARTED), {**wanted, "precision": chosen})
    listed = images.frame[["image", "digest"]].assign(part=np.where(held, "held out", "train"))
    write_text_atomic(run.path(IMAGES), listed.to_csv(index=False, lineterminator="\n"))
    fitted = _fit(model, images, held, recipe, run, place, chosen, resume, pictures)
    if pictures:
        pictures.losses(fitted.epoch)

    save_tensors(run, model.state_dict())
    run.mark_complete(
        {
            "entrep": __version__,
            "method": recipe.method,
            "reads_text": False,
            "preprocess": Preprocess(**recipe.image.model_dump(), **white.statistics).as_dict(),
            "weights": origin,
            "validation": {name: value for name, value in fitted.scores.items() if name.startswith("val_") and name != MONITOR},
            "epoch": fitted.epoch,
            "data": {**about["data"], "images": {"train": int((~held).sum()), "held out": int(held.sum())}},
            "split": about["split"],
            "device": str(place),
            "precision": chosen,
            "parameters": fitted.parameters,
            "seconds": round(fitted.seconds, 1),
            "versions": versions(),
        }
    )
    end_training(run)
    return model, run.manifest


def _fit(
    model: MicsPretraining,
    images: Catalog,
    held: np.ndarray,
    recipe: MicsPretrainingRecipe,
    run: Run,
    device: torch.device,
    precision: str,
    resume: bool,
    pictures: Pictures | None,
) -> LoopResult:
    section, settings = recipe.pretraining, recipe.pretraining.train
    preprocess = Preprocess(**recipe.image.model_dump(), **model.white.statistics)
    pixels = load_pixels(images.paths, images.digests, preprocess, "images")
    second = second_modality(images, preprocess, recipe.narrow)
    train, kept = (torch.from_numpy(np.flatnonzero(part)) for part in (~held, held))
    console.say(f"{len(train)} images to learn from, {len(kept)} held out for the loss that chooses the epoch.")
    tally = _Tally()

    def views(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        white = torch.from_numpy(pixels[rows.numpy()])
        return white, second.batch(rows, white)

    def losses(epoch: int) -> Iterator[torch.Tensor]:
        nonlocal tally
        tally = _Tally(epoch)
        generator = epoch_generator(recipe.seed, epoch)
        for pick in batches(train[torch.randperm(len(train), generator=generator)], settings.batch_size):
            nothing = torch.zeros(len(pick), dtype=torch.long)
            white, narrow, _ = augment_alike(*views(pick), nothing, _NO_CLASSES, section.augment, generator)
            with autocast(device, precision):
                found = model(white.to(device), narrow.to(device), generator)
            tally.add(found.scores(), len(pick))
            yield found.total

    @torch.no_grad()
    def validate(_: nn.Module) -> dict[str, float]:
        generator = torch.Generator().manual_seed(recipe.seed)  # the same masks in every epoch
        own = _Tally()
        for pick in batches(kept, settings.batch_size):
            white, narrow = (view.to(device) for view in views(pick))
            own.add(model(white, narrow, generator).scores(), len(pick))
        if pictures and section.pictures and (tally.epoch % section.pictures == 0 or tally.epoch == settings.epochs):
            _draw(tally.epoch)
        loss = own.sums["total"] / own.n
        return {**tally.means("train"), "val_loss": loss, **own.means("val"), MONITOR: -loss}

    def _draw(epoch: int) -> None:
        # The first of every group, then the others: frames of one exam look alike.
        alike = pd.Series(images.groups[kept.numpy()]).duplicated().to_numpy()
        shown = kept[np.concatenate([np.flatnonzero(~alike), np.flatnonzero(alike)])[:_SHOWN]]
        whole = views(shown)
        generator = torch.Generator().manual_seed(recipe.seed)
        seen, drawn = model.reconstruct(*(view.to(device) for view in whole), generator)
        columns = [view.cpu().numpy() for m in range(len(MODALITIES)) for view in (whole[m], seen[m], drawn[m])]
        pictures.reconstructions(epoch, columns, bool(second.real[shown.numpy()].any()))

    started = () if recipe.backbone.weights == "none" else {n for n, _ in model.named_parameters() if n.startswith(("white.", "narrow."))}
    steps = len(batches(train, settings.batch_size))
    how = {"monitor": MONITOR, "seed": recipe.seed, "resume": resume, "pretrained": started, "precision": precision}
    return fit(model, losses, steps, validate, settings, run, **how)


def initial_encoders(recipe: MicsPretrainingRecipe) -> tuple[Backbone, Backbone]:
    """The encoders as the pre-training of this recipe begins, on the CPU: what it is to be compared with."""
    torch.manual_seed(recipe.seed)
    white, narrow, _ = create_encoders(recipe.backbone, recipe.image.size)
    return white.eval(), narrow.eval()


def _images_of(images: Catalog, about: dict[str, Any]) -> dict[str, Any]:
    return {**trained_on(about), "images": fingerprint([[*row] for row in zip(images.digests, images.groups)])}
