"""Does a model that has learned to tell findings look at them? The pointing game on phantom data.

    python benchmarks/pointing_game.py --seed 1 --out pointing.json
    python benchmarks/pointing_game.py --images 60 --epochs 1 --models conv      # does it run; learns nothing

Drawn are ears of both sides, every one another patient, healthy or with one of three findings: nothing but
the finding tells the classes apart, so a model that is right has seen it. What is trained is what `train`
offers, from random weights, on views of 96 pixels. For every image with a finding the model is asked
for that class, whatever it predicted (`text`: for the finding's name), and the heat is held against the mask
of the finding. Settings are chosen with --split val, or with another seed, which draws other patients.

hits     share of images whose hottest pixel lies in the mask, or within --tolerance of it (15 pixels of
         images whose shorter side is 224 or more in Zhang et al. 2018, section 4.1; here the same share of the side)
mass     share of the heat that lies in the mask; "near": in it or within --tolerance of it, where a hit is one;
         "outside": on the black around the view, which counts as missed
chance   of hits and of mass near: share of the lit view that would be a hit; of mass: the mask's share of the lit view
Intervals are 95% bootstrap over images; "centre" always points at the middle of the image.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--images", type=int, default=1600, help="in all, as many of each class; 60%% train, 15%% val, 25%% test")
parser.add_argument("--models", nargs="+", default=["conv", "vit"], help="conv, conv-mean, vit, clip, clip-vit")
parser.add_argument("--split", choices=("val", "test"), default="test", help="what is played with")
parser.add_argument("--epochs", type=int, help="of all models; default: those of each model")
parser.add_argument("--size", type=int, default=96, help="side of the square that models see, in pixels")
parser.add_argument("--tolerance", type=float, default=15 / 224, help="of that side")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--work", type=Path, help="a folder for data and runs, reused next time; default: a temporary one")
parser.add_argument("--out", help="a JSON file for the numbers")
parser.add_argument("--sheet", type=Path, help="a PNG of the first image of every finding under each model's default way, outlined")
args = parser.parse_args()
temporary = None if args.work else tempfile.TemporaryDirectory()
work = args.work or Path(temporary.name)
os.environ["ENTREP_RUNS"] = str(work / "runs")

import numpy as np  # noqa: E402 - the runs folder stands before anything looks for it
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from scipy.ndimage import binary_dilation, distance_transform_edt  # noqa: E402

from entrep_cli.data.catalog import Catalog  # noqa: E402
from entrep_cli.data.images import field_of_view  # noqa: E402
from entrep_cli.data.phantom import FINDINGS, render  # noqa: E402
from entrep_cli.data.splits import make_split  # noqa: E402
from entrep_cli.evaluation.intervals import bootstrap_mean  # noqa: E402
from entrep_cli.methods import method_class  # noqa: E402
from entrep_cli.methods.clip_lora import ClipLora  # noqa: E402
from entrep_cli.methods.explanation import WAYS, explain_images  # noqa: E402
from entrep_cli.methods.runs import load_model, train_run  # noqa: E402
from entrep_cli.models.towers import tower_of  # noqa: E402
from entrep_cli.recipes.recipe import build_recipe, parse_assignments, read_recipe  # noqa: E402
from entrep_cli.reporting.overlays import Look, explanation_sheet  # noqa: E402
from entrep_cli.workspace import Run, new_run, write_text_atomic  # noqa: E402

CLASSES = {"healthy": "normal", "bead": "foreign-body", "scar": "membrane-scar", "wax": "cerumen"}
SIZE = args.size
NEAR = args.tolerance * SIZE  # pixels
# Of a round view any turn is as good; where a finding lies, and how large, should not tell what it is.
COMMON = [f"image.size={SIZE}", "image.field_of_view=true", "augment.rotation=180", "augment.shift=0.1", "train.patience=0"]
VIT_RATES = ["train.learning_rate=5e-4", "train.backbone_learning_rate=5e-4", "train.batch_size=16"]
CLIP_VIT = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": SIZE, "layers": 4, "width": 128, "head_width": 32, "patch_size": SIZE // 8},
    "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 96, "heads": 4, "layers": 2},
}
# name -> recipe, its settings; all from random weights. Pooling near the maximum (gem) rewards a finding for being
# there at all, where a mean rewards its size: with it a net need not gather evidence from elsewhere.
MODELS = {
    "conv": (
        "dinov2-tiny",
        [*COMMON, "train.epochs=14", "backbone.pooling=gem", "backbone.options={channels = [32, 64, 96, 128], output_stride = 8}"],
    ),
    "conv-mean": ("dinov2-tiny", [*COMMON, "train.epochs=12"]),
    # One convolution before its patches: without it none was found that learns from so few images.
    "vit": (
        "dinov2-tiny",
        [*COMMON, *VIT_RATES, "train.epochs=20", "train.weight_decay=0.05", "backbone.pooling=gem", "backbone.name=vit_tiny_r_s16_p8_224"]
        + ["backbone.options={patch_size = 2, embed_dim = 96, depth = 3, num_heads = 4}"],
    ),
    "clip": ("tiny", [*COMMON, "train.epochs=15"]),
    "clip-vit": ("tiny", [*COMMON, *VIT_RATES, "train.epochs=40", f"backbone.name={work / 'clip-vit.json'}", "fusion.levels=[2,4]"]),
}


def draw(folder):
    """The dataset in class folders, and beside it the masks of the findings; every image is a patient of its own."""
    masks = folder.with_name("masks")
    rng = np.random.default_rng(args.seed)
    for number in range(args.images):
        label = list(CLASSES)[number % len(CLASSES)]
        finding = CLASSES[label]
        side = ("ear-left", "ear-right")[int(rng.integers(2))]
        picture, found = render(side, () if finding == "normal" else (finding,), (args.seed, number), (args.seed, number, 0), (320, 240))
        for path in (folder / label, masks):
            path.mkdir(parents=True, exist_ok=True)
        name = f"{label}_{number:04}.png"
        picture.save(folder / label / name)
        if finding in found:
            Image.fromarray(found[finding]).save(masks / name)
    prompts = {label: FINDINGS[finding] for label, finding in CLASSES.items()}
    rows = [
        f'[[classes]]\nname = "{label}"\nid = {i}\nregion = "ear"\nmirror = "{label}"\n'
        f'prompts.en = ["{text.english}"]\nprompts.vi = ["{text.vietnamese}"]\n'
        for i, (label, text) in enumerate(prompts.items())
    ]
    write_text_atomic(folder / "taxonomy.toml", "\n".join(rows))


def trained(name):
    recipe_name, settings = MODELS[name]
    run = Run(work / "runs" / name)
    if not run.complete:
        table = read_recipe(recipe_name)
        more = [*settings, *([f"train.epochs={args.epochs}"] if args.epochs else [])]
        recipe = build_recipe(method_class(table["method"]).Recipe, table, parse_assignments(more), {"seed": args.seed})
        train_run(catalog, split, recipe, new_run(recipe.method, name))
    return load_model(run), run.manifest["seconds"]


def squares(model, paths):
    """(N, S, S) bool twice: the findings, and the lit view, in the square that the model sees."""
    whole = replace(model.preprocess, field_of_view=False)
    masks, lit = [], []
    for path in paths:
        image, mask = Image.open(path).convert("RGB"), Image.open(work / "masks" / path.name).convert("RGB")
        box = field_of_view(np.asarray(image)) if model.preprocess.field_of_view else (0, 0, *image.size)
        masks.append(whole(mask.crop(box)).max(axis=0) > 127)
        lit.append(whole(image.crop(box)).max(axis=0) > 21)
    return np.stack(masks), np.stack(lit)


def scores(heat, masks, lit):
    """Hits, mass and their chances of every image, by name."""
    near = np.stack([distance_transform_edt(~mask) <= NEAR for mask in masks])
    hottest = heat.reshape(len(heat), -1).argmax(axis=1)
    hits = near.reshape(len(near), -1)[np.arange(len(near)), hottest]
    total = heat.sum(axis=(1, 2))
    # An image without any heat points nowhere: that is no hit, and no mass.
    hits &= total > 0
    mass, mass_near, outside = ((heat * of).sum(axis=(1, 2)) / np.maximum(total, 1e-12) for of in (masks, near, ~lit))
    view = lit.sum(axis=(1, 2))
    return {
        "hits": hits,
        "hits by chance": (near & lit).sum(axis=(1, 2)) / view,
        "mass near": mass_near,
        "mass": mass,
        "mass by chance": (masks & lit).sum(axis=(1, 2)) / view,
        "mass outside": outside,
    }


def summary(heat, masks, lit, labels):
    found = scores(heat, masks, lit)
    row = {name: bootstrap_mean(values, seed=args.seed).as_dict() for name, values in found.items()}
    return {**row, "of each": {c: [float(found[name][labels == c].mean()) for name in ("hits", "mass near")] for c in np.unique(labels)}}


def show(model, way, row):
    found = (f"{name} {v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for name, v in row.items() if "value" in v)
    each = (f"{c} {hits:.2f} {near:.2f}" for c, (hits, near) in row["of each"].items())
    print(f"{model:10} {way:42}", *found, "hits, mass near of", *each, sep="  ", flush=True)


def outlined(pixels, mask):
    """(3, H, W) uint8 with a green line around what is masked."""
    line = binary_dilation(mask) & ~mask
    return np.where(line, np.array([0, 255, 0], np.uint8)[:, None, None], pixels)


write_text_atomic(work / "clip-vit.json", json.dumps(CLIP_VIT))
data = work / "data"
if not data.is_dir():
    draw(data)
catalog = Catalog.read(data, groups="none")
split = make_split(catalog, ratios=(60, 15, 25), seed=args.seed)
test = catalog.subset(split.images(args.split))
results, looks = {}, []
for name in args.models:
    model, seconds = trained(name)
    paths = [Path(p) for p in test.paths]
    pixels = torch.from_numpy(np.stack([model.preprocess(Image.open(p).convert("RGB")) for p in paths]))
    right = torch.cat([model.classify(some).argmax(dim=1) for some in pixels.split(32)]).numpy() == test.targets
    ill = np.flatnonzero([(work / "masks" / p.name).is_file() for p in paths])
    masks, lit = squares(model, [paths[i] for i in ill])
    targets = test.targets[ill]
    labels = np.array(model.taxonomy.names)[targets]
    tower = model.backbone.visual if isinstance(model, ClipLora) else model.backbone.model
    results[name] = {"accuracy": bootstrap_mean(right).as_dict(), "images": len(ill), "seconds of training": seconds, "ways": {}}
    print(f"{name}: accuracy {bootstrap_mean(right)} on {len(right)} images, {seconds:.0f} s of training")
    rows = results[name]["ways"]
    for way in WAYS if tower_of(tower).is_vit else ("layer-cam", "hires-cam", "grad-cam"):
        start = time.perf_counter()
        heat = explain_images(model, pixels[ill], classes=targets.tolist(), by=way).heat.numpy()
        seconds = (time.perf_counter() - start) / len(ill)
        rows[way] = {**summary(heat, masks, lit, labels), "seconds an image": seconds}
        show(name, WAYS[way], {k: v for k, v in rows[way].items() if isinstance(v, dict)})
        if model.reads_text and way != "rollout":
            heat = np.zeros(masks.shape, np.float32)
            for target in np.unique(targets):
                of_text = targets == target
                text = FINDINGS[CLASSES[model.taxonomy.names[target]]].english
                heat[of_text] = explain_images(model, pixels[ill[of_text]], text=text, by=way).heat.numpy()
            rows[f"{way}, text"] = summary(heat, masks, lit, labels)
            show(name, f"{WAYS[way]}, text", rows[f"{way}, text"])
    # A class that is not there: whether the heat is that of the class asked about, or of all that is conspicuous.
    absent = np.unique(targets)
    absent = absent[(np.searchsorted(absent, targets) + 1) % len(absent)]
    heat = explain_images(model, pixels[ill], classes=absent.tolist()).heat.numpy()
    rows["default, absent class"] = summary(heat, masks, lit, labels)
    show(name, "default, asked about another finding", rows["default, absent class"])
    firsts = np.unique(targets, return_index=True)[1]
    default = explain_images(model, pixels[ill[firsts]], classes=targets[firsts].tolist())
    for i, heat, by in zip(firsts, default.heat.numpy(), default.ways):
        looks.append(Look(outlined(pixels[ill[i]].numpy(), masks[i]), heat, (name, f"{labels[i]}, outlined", f"by {by}")))
    # Sanity check (Adebayo et al. 2018): a map that a random net draws as well tells nothing of what was learned.
    # All layers are drawn anew; a ViT's positions stay.
    torch.manual_seed(args.seed)
    for module in model.modules():
        getattr(module, "reset_parameters", bool)()
    heat = explain_images(model, pixels[ill], classes=targets.tolist()).heat.numpy()
    rows["default, random weights"] = summary(heat, masks, lit, labels)
    show(name, "default, its weights drawn anew", rows["default, random weights"])
centre = np.zeros(masks.shape, np.float32)
centre[:, centre.shape[1] // 2, centre.shape[2] // 2] = 1
results["centre"] = summary(centre, masks, lit, labels)
show("centre", "", results["centre"])
if args.sheet:
    explanation_sheet(looks, "Where models look for what they were asked about", args.sheet)
about = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "timm", "open_clip_torch", "numpy")}}
if args.out:
    text = json.dumps({"arguments": {k: str(v) for k, v in vars(args).items()}, "versions": about, "results": results}, indent=2)
    write_text_atomic(Path(args.out), text + "\n")
