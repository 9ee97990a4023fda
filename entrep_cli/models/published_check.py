"""Are published weights here, whole, and those of the model they are for? Without a network."""

from __future__ import annotations

from pathlib import Path

from entrep_cli.errors import EntrepError, first_line
from entrep_cli.models.pretrained import PublishedWeights


def check_weights(weights: PublishedWeights, *, load: bool = True) -> list[str]:
    """Every fault of an entry's files: missing, of another size or hash, or not those of the model. Empty where all is well.

    Args:
        load: also build the model and load the files strictly; only tried where no file has a fault.
    """
    faults = []
    for file in weights.files:
        path = file.local()
        fault = "it is not on this machine" if path is None else file.fault(path)
        if fault:
            faults.append(f"{file.repository}, {file.name}: {fault}")
    if faults or not load or weights.load is None:
        return faults
    try:
        _load(weights)
    except EntrepError as error:
        faults.append("; ".join([f"it does not load: {error.what}", *error.faults, *([error.where] if error.where else [])]))
    except Exception as error:  # the libraries raise anything for files that are not what they are called
        faults.append(f"it does not load: {type(error).__name__}: {first_line(error)}")
    return faults


def _load(weights: PublishedWeights) -> None:
    how = weights.load
    if "timm" in how:
        from entrep_cli.models.backbones import BackboneSettings, create_backbone

        path: Path = weights.files[0].local()
        create_backbone(BackboneSettings(name=how["timm"], weights=str(path)), how["size"])
        return
    from entrep_cli.models.clip import ClipSettings, build_clip, load_clip_weights, make_tokenizer, read_architecture

    settings = ClipSettings(name=how["clip"], **({"tag": how["tag"]} if "tag" in how else {}))
    architecture = read_architecture(settings.name)
    load_clip_weights(build_clip(architecture, how["size"]), settings)
    make_tokenizer(settings, architecture)(["a polyp"])
