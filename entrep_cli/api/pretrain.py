"""`pretrain`: encoders from images without labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrep_cli import console
from entrep_cli.api.common import left_in_order, say_catalog
from entrep_cli.errors import UsageError
from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe, short_settings
from entrep_cli.results import Result, Table
from entrep_cli.workspace import CONFIG, Run, data_dir, data_dir_exists, new_run

if TYPE_CHECKING:
    from entrep_cli.experiments.mics import Probe
    from entrep_cli.methods.mics_pretraining import MicsPretrainingRecipe

METHODS = ("mics",)


@dataclass(frozen=True)
class Pretrained(Result):
    """A complete pre-training.

    Attributes:
        run: its folder; manifest: what it was made from, and what it cost.
        recipe: its settings.
        losses: name, and value in the first, the last and the chosen epoch.
        probe: what the features are worth, before and after; None where nothing could be probed.
    """

    run: Run
    manifest: dict[str, Any]
    recipe: MicsPretrainingRecipe
    losses: list[tuple[str, float, float, float]]
    probe: Probe | None

    @property
    def files(self) -> list[Path]:
        """The curves, and the reconstructions where they were drawn."""
        return [self.run.path("losses.png"), *([self.run.path("reconstructions")] if self.recipe.pretraining.pictures else [])]

    @property
    def backbone_assignments(self) -> list[str]:
        """What `entrep train dinov2 --set` needs to build the same backbone."""
        options = ", ".join(f"{key} = {json.dumps(value)}" for key, value in self.recipe.backbone.options.items())
        return [f"image.size={self.recipe.image.size}", *([f"backbone.options={{{options}}}"] if options else [])]

    def tables(self) -> list[Table]:
        title = f"Run {self.run.name}: losses; the weights of epoch {self.manifest['epoch']} are saved, with the least held-out sum"
        losses = Table(title, ["loss", "first epoch", "last epoch", "saved"], self.losses)
        if self.probe is None:
            return [losses]
        title = (
            f"Linear probe: logistic regression on frozen features, {self.probe.n_train} training images; "
            f"on {self.probe.n_val} validation images, 95% intervals over groups"
        )
        labels = (self.probe.before_name, "after pre-training", "difference, paired")
        rows = zip(labels, (self.probe.before, self.probe.after, self.probe.difference))
        return [losses, Table(title, ["features", "accuracy", "macro F1"], [(label, *scores.values()) for label, scores in rows])]

    def to_dict(self) -> dict[str, Any]:
        probe = self.probe and self.probe.as_dict()
        return {"run": self.run.name, "folder": str(self.run.folder), **self.manifest, "probe": probe}


def pretraining_recipe(
    method: str,
    *,
    recipe: str | None = None,
    set: Sequence[str] = (),
    backbone: str | None = None,
    weights: str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
) -> MicsPretrainingRecipe:
    """The complete settings of a pre-training; as `effective_recipe`.

    Raises:
        UsageError: no such pre-training or recipe, or settings that do not hold.
    """
    if method not in METHODS:
        raise UsageError(f"No pre-training of {method!r}.", hint=f"choose one of: {', '.join(METHODS)}")
    from entrep_cli.methods import PRETRAINING
    from entrep_cli.methods.mics import MicsRecipe

    base = read_recipe(recipe or method)
    if base.get("method", method) not in (method, PRETRAINING):
        what = f"{recipe!r} is a recipe of {base['method']}, not of {method}."
        raise UsageError(what, hint="--recipe mics or mics-tiny; with --resume, --name names the run")
    limit: dict[str, Any] = {} if epochs is None else {"pretraining": {"train": {"epochs": epochs}}}
    short = short_settings(backbone=backbone, weights=weights, seed=seed)
    return build_recipe(MicsRecipe, {**base, "method": method}, parse_assignments(set), short, limit).for_pretraining()


def pretrain(
    method: str,
    *,
    data: Path | str | None = None,
    images: Sequence[Path | str] = (),
    recipe: str | None = None,
    set: Sequence[str] = (),
    backbone: str | None = None,
    weights: str | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    fold: int | None = None,
    name: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> Pretrained:
    """Pre-train encoders on the training images of the dataset and on all images of `images`; no label is read.

    Args:
        method: `mics`: two encoders, of white light and of narrow band.
        images: folders of further images; these alone where no dataset is named or present.
        recipe, set, backbone, weights, epochs, seed: the settings; see `pretraining_recipe`.
        fold: the fold left out. name, resume, overwrite: as for `train`.

    Raises:
        as `train`.
    """
    if method in METHODS and resume and overwrite:
        raise UsageError("--resume goes on with a run, --overwrite starts it anew.", hint="give one of them")
    pretraining_recipe(method)  # an unknown method must show before a run is looked for
    from entrep_cli.methods import PRETRAINING
    from entrep_cli.methods.mics_pretraining import gather, pretrain_run

    started = new_run(PRETRAINING, name, resume=True) if resume else None
    if started and not recipe and started.path(CONFIG).is_file():
        recipe = str(started.path(CONFIG))
    short: dict[str, Any] = {"backbone": backbone, "weights": weights, "epochs": epochs, "seed": seed}
    settings = pretraining_recipe(method, recipe=recipe, set=set, **short)

    from entrep_cli.data.catalog import Catalog
    from entrep_cli.data.splits import read_catalog_and_split, split_path
    from entrep_cli.experiments.mics import RunPictures, linear_probe, loss_rows

    folders = [Path(folder) for folder in images]
    catalog = split = None
    if data or data_dir_exists() or not folders:  # folders alone are enough
        root = data_dir(None if data is None else Path(data))
        catalog, split = read_catalog_and_split(root) if split_path().is_file() else (Catalog.read(root), None)
        say_catalog(catalog)
    if fold is not None and split is None:
        raise UsageError("--fold needs a dataset that is split into folds.", hint="`entrep split --folds 5`")
    unlabelled, about = gather(catalog, split, fold, folders)
    run = started or new_run(PRETRAINING, name, overwrite=overwrite)
    named = "".join(console.flags(images=folder) for folder in folders)
    command = f"entrep pretrain {method} --resume{console.flags(name=run.name, data=data, fold=fold)}{named}"
    with left_in_order(run, "pre-training", command):
        how: dict[str, Any] = {"device": device, "precision": precision, "resume": resume}
        _, manifest = pretrain_run(unlabelled, about, settings, run, **how, pictures=RunPictures(run, settings))
    probe = None
    if catalog is None or split is None:
        console.say("No linear probe: it needs labels and a split.")
    elif (probe := linear_probe(run, catalog, split, fold, device=device)) is None:
        console.say("No linear probe: the training subset has labels of one class alone.")
    return Pretrained(run, manifest, settings, loss_rows(run), probe)
