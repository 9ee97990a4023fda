"""How near does `entrep embed` come to the bare forward pass of its model, and how do plain loops and ONNX Runtime?

    python benchmarks/embedding.py --images 500 --out embedding.json
    python benchmarks/embedding.py --images 8 --repeats 1          # a quick look

PNG files of 640 x 480 through one CLIP image tower with random weights, from files to vectors on disk, in this one
process and in turns; the fastest pass of each counts. `share` is the bare forward pass's time over a way's time, so
1 would cost nothing beside the model; `ratio` is a way's time over ours, above 1 where ours is faster.

The loops: open_clip's README loop, and the same over timm's own model and transforms, a batch at a time with nothing
beside it. clip-retrieval is run where it can be imported as a package; its structure (a DataLoader with workers as
reader, a mapper, a writer of .npy parts: clip_inference/{reader,mapper,writer}.py) is re-made here either way, for its
own entry point downloads a model by name.
"""

import os
import shutil
import tempfile
from pathlib import Path

import entrep_cli.torchvision_ops  # noqa: F401 - before open_clip and timm import torchvision

import harness
import numpy as np
from PIL import Image

from entrep_cli import console
from entrep_cli.data.pixels import decode_images
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.methods.clip_lora import ClipLora, ClipLoraRecipe
from entrep_cli.methods.exporting import export_onnx, open_exported
from entrep_cli.models.attention import explicit_attention
from entrep_cli.models.clip import read_architecture
from entrep_cli.models.device import choose_device
from entrep_cli.models.precision import choose_inference_precision, lower
from entrep_cli.recipes.recipe import build_recipe, recipe_toml
from entrep_cli.retrieval.embeddings import Items, embeddings_of
from entrep_cli.retrieval.pipeline import Stages, choose_batch
from entrep_cli.workspace import CONFIG, MODEL, Run, cache_dir, file_sha256

parser = harness.parser(__doc__)
parser.add_argument("--images", type=int, default=16, help="500 for the figures of benchmarks/README.md")
parser.add_argument("--model", default="ViT-B-16-quickgelu", help="any open_clip configuration of one tower for images")
parser.add_argument("--timm", default="vit_base_patch16_clip_quickgelu_224", help="the same model as timm has it")
parser.add_argument("--precision", default="auto", help="of ours: auto, fp32, bf16, fp16")
parser.add_argument("--batch", type=int, help="images at a time, of all ways; default: as `entrep embed` chooses")
parser.add_argument("--device", default="auto")
args = parser.parse_args()
console.set_mode("quiet")
harness.peer("clip_retrieval", "clip-retrieval")

import open_clip  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from open_clip.transform import image_transform  # noqa: E402

place = Path(tempfile.mkdtemp(prefix="entrep-bench-"))
os.environ["ENTREP_RUNS"] = str(place / "runs")  # whose caches are thrown away below: not those of anybody's work
rng = np.random.default_rng(0)
paths = []
for i in range(args.images):
    small = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    noisy = np.asarray(small).astype(np.int16) + rng.integers(-6, 7, (480, 640, 3))
    paths.append(place / f"{i:04}.png")
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1])
items = Items.of(image=[p.name for p in paths], path=list(map(str, paths)), digest=[file_sha256(p)[:16] for p in paths])

device, device_reason = choose_device(args.device)
torch.manual_seed(0)
architecture = read_architecture(args.model)
recipe = build_recipe(ClipLoraRecipe, {"tune": "full", "backbone": {"name": args.model, "weights": "none"}, "texts": {"contrast": 0}})
model = ClipLora(architecture, recipe, Taxonomy.entrep()).eval().requires_grad_(False)
explicit_attention(model.backbone)  # as a run of `clip-lora` has it once its adapters are merged
run = Run(place / "runs" / "bench")
run.folder.mkdir(parents=True)
run.path(CONFIG).write_text(recipe_toml(recipe))
run.path(MODEL).write_bytes(b"random weights of seed 0")
run.mark_complete({"method": "clip-lora", "taxonomy": model.taxonomy.as_dict(), "preprocess": model.preprocess.as_dict()})

exported = None
if harness.peer("onnx", "onnx") and harness.peer("onnxruntime", "onnxruntime") and harness.peer("onnxscript", "onnxscript"):
    side = model.preprocess.size
    parity = export_onnx(run, model, torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8))["parity"]
    exported = open_exported(run)
model.to(device)
precision, precision_reason = choose_inference_precision(args.precision, device, model)
lower(model, precision)
size, size_reason = choose_batch(model, args.batch)
ready = torch.from_numpy(np.stack(list(decode_images(paths, model.preprocess))))

stock = open_clip.create_model(args.model, pretrained=None).eval().to(device)
of_timm = timm.create_model(args.timm, pretrained=False, num_classes=0).eval().to(device)
transform = image_transform(model.preprocess.size, is_train=False)
timm_transform = timm.data.create_transform(**timm.data.resolve_model_data_config(of_timm), is_training=False)


def forget():
    shutil.rmtree(cache_dir("pixels"), ignore_errors=True)
    shutil.rmtree(run.path("embeddings"), ignore_errors=True)


def bare():
    with torch.inference_mode():
        return [model.infer(batch.to(device))[0].float().cpu() for batch in ready.split(size)]


def ours(engine=model, keep_pixels=False):
    if keep_pixels:
        shutil.rmtree(run.path("embeddings"), ignore_errors=True)
    else:
        forget()
    stages = Stages()
    embeddings_of(run, "bench", items, engine, any_engine=False, batch_size=size, stages=stages)
    return stages.as_dict()


def again():
    return embeddings_of(run, "bench", items, model, batch_size=size).vectors[0]


def loop(encode, prepare):
    rows = []
    with torch.no_grad():
        for first in range(0, len(paths), size):
            batch = torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths[first : first + size]])
            rows.append(torch.nn.functional.normalize(encode(batch.to(device)), dim=-1).cpu().numpy())
    np.save(place / "loop.npy", np.concatenate(rows))


class Files(torch.utils.data.Dataset):
    def __len__(self):
        return len(paths)

    def __getitem__(self, i):
        return transform(Image.open(paths[i]))


def clip_retrieval_structure():
    reader = torch.utils.data.DataLoader(Files(), batch_size=size, num_workers=2, prefetch_factor=2, pin_memory=device.type == "cuda")
    parts = []
    for batch in reader:
        with torch.no_grad():
            features = stock.encode_image(batch.to(device))
            features /= features.norm(dim=-1, keepdim=True)
        parts.append(features.cpu().to(torch.float16).numpy())
    np.save(place / "img_emb_0.npy", np.concatenate(parts))


ways = {
    "bare forward pass": bare,
    "ours": ours,
    "ours, pixels cached": lambda: ours(keep_pixels=True),
    "ours, second time": again,
    "open_clip loop": lambda: loop(stock.encode_image, transform),
    "timm loop": lambda: loop(of_timm, timm_transform),
    "clip-retrieval's structure": clip_retrieval_structure,
}
if exported:
    ways["ours, ONNX Runtime"] = lambda: ours(exported, keep_pixels=True)
    # After another engine the set of the first is made again, so that the second time below finds it.
    ways = {name: ways[name] for name in ("ours, ONNX Runtime", *(name for name in ways if "ONNX" not in name))}
try:
    ours()
    bare()
    found = harness.fastest(ways, args.repeats)
finally:
    shutil.rmtree(place)

base, mine = found["bare forward pass"][0], found["ours"][0]
results = {}
for name, (seconds, result) in found.items():
    results[name] = {"seconds": seconds, "images/s": args.images / seconds, "share": base / seconds, "ratio": seconds / mine}
    if isinstance(result, dict):
        results[name]["stages"] = result
    told = f"{args.images / seconds:.1f} images/s, fraction {base / seconds:.2f}, ratio {seconds / mine:.3g}"
    print(f"{name}: {told}")
results["chosen"] = {
    "device": f"{device} ({device_reason})",
    "precision": f"{precision} ({precision_reason})",
    "batch": f"{size} ({size_reason})",
    "threads": torch.get_num_threads(),
}
if exported:
    results["ONNX parity"] = parity
harness.report(args, results, ("torch", "open_clip_torch", "timm", "pillow"))
