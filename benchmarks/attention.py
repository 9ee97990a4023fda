"""Is explicit attention equal to open_clip's, and how fast is it beside it? Is merged LoRA equal to unmerged?

    python benchmarks/attention.py --out attention.json
    python benchmarks/attention.py --batch 2 --repeats 1      # a quick look

Both models have the same random weights and run in this one process, in turns; the fastest pass of
each counts. `ratio` is stock time over explicit time, above 1 where explicit is faster.
`difference` is the largest absolute one between stock and explicit in float32: of the features, and
of the gradients of their sum of squares; `relative` is it over the largest absolute value.
"""

import copy
import time
from contextlib import nullcontext

import entrep_cli.torchvision_ops  # noqa: F401 - before open_clip imports torchvision

import open_clip
import torch
from harness import parser, report

from entrep_cli.models.attention import explicit_attention, stock_state_dict
from entrep_cli.models.lora import LoraSettings, add_lora, lora_parameters, merged

cli = parser(__doc__)
cli.add_argument("--model", default="ViT-B-16-quickgelu", help="any open_clip configuration")
cli.add_argument("--batch", type=int, default=8, help="images, and texts, a pass")
cli.add_argument("--threads", type=int, help="1 is the steadiest on a machine that others use too; default: torch's choice")
args = cli.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)

torch.manual_seed(0)
stock = open_clip.create_model(args.model, pretrained=None)
with torch.no_grad():  # attention biases start at zero and would hide a bias gone astray
    for parameter in stock.parameters():
        parameter.add_(0.01 * torch.randn_like(parameter))
explicit = copy.deepcopy(stock)
n_replaced = explicit_attention(explicit)
pixels = torch.rand(args.batch, 3, *open_clip.utils.to_2tuple(stock.visual.image_size))
tokens = torch.randint(1, stock.vocab_size, (args.batch, stock.context_length))
inputs = {"image": pixels, "text": tokens}


def encode(model, tower, n=args.batch, dtype=torch.float32):
    batch = inputs[tower][:n]
    return model.encode_image(batch.to(dtype)) if tower == "image" else model.encode_text(batch)


def gap(found, wanted):
    difference = float((found - wanted).abs().max())
    return {"difference": difference, "relative": difference / float(wanted.abs().max())}


def gradients(model, tower):
    model.zero_grad()
    features = encode(model, tower, n=2)
    features.square().sum().backward()
    found = copy.deepcopy(model)
    for copied, parameter in zip(found.parameters(), model.parameters(), strict=True):
        copied.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return features.detach(), stock_state_dict(found)


equality = {}
for training in (False, True):
    mode = "train" if training else "eval"
    for tower in inputs:
        (wanted, wanted_gradients), (found, found_gradients) = (gradients(m.train(training), tower) for m in (stock, explicit))
        of_gradients = [gap(found_gradients[key], value) for key, value in wanted_gradients.items() if value.abs().max() > 0]
        rows = {
            "features": gap(found, wanted),
            "gradients": {key: max(row[key] for row in of_gradients) for key in ("difference", "relative")},
        }
        equality[f"{tower}, {mode}"] = rows
        print(f"{tower}, {mode}: " + ", ".join(f"{what} {row['difference']:.1e} ({row['relative']:.1e})" for what, row in rows.items()))

adapted = add_lora(copy.deepcopy(explicit).eval(), LoraSettings())
with torch.no_grad():
    for parameter in lora_parameters(adapted):
        parameter.normal_(std=0.02)
    n_trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    unmerged = {tower: encode(adapted, tower, n=2) for tower in inputs}
    moved = {tower: gap(unmerged[tower], encode(explicit.eval(), tower, n=2)) for tower in inputs}
    merged(adapted)
    after = {tower: gap(encode(adapted, tower, n=2), unmerged[tower]) for tower in inputs}
    lora = {tower: {**after[tower], "moved by adapters": moved[tower]["difference"]} for tower in inputs}
print(f"LoRA: {n_trained} trained parameters; merged against unmerged: {lora}")
del adapted


def seconds(model, tower, dtype, context):
    with torch.inference_mode(), context:
        start = time.perf_counter()
        encode(model, tower, dtype=dtype)
        return time.perf_counter() - start


speed = {}
models = {"stock": stock.eval().requires_grad_(False), "explicit": explicit.eval().requires_grad_(False)}
for precision in ("float32", "bfloat16 autocast", "bfloat16"):  # the last one casts the models for good
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    for model in models.values():
        model.to(dtype)
    for tower in inputs:
        times = {kind: [] for kind in models}
        for _ in range(args.repeats):
            for kind, model in models.items():
                context = torch.autocast("cpu", torch.bfloat16) if "autocast" in precision else nullcontext()
                times[kind].append(seconds(model, tower, dtype, context))
        best = {kind: min(values) for kind, values in times.items()}
        rows = {kind: {"seconds": value, "per_second": args.batch / value} for kind, value in best.items()}
        speed[f"{tower}, {precision}"] = {**rows, "ratio": best["stock"] / best["explicit"]}
        print(
            f"{tower}, {precision}: stock {rows['stock']['per_second']:.1f}/s, explicit {rows['explicit']['per_second']:.1f}/s, "
            f"ratio {speed[f'{tower}, {precision}']['ratio']:.2f}"
        )

results = {
    "threads": torch.get_num_threads(),
    "replaced": n_replaced,
    "equality": equality,
    "lora": {"trained parameters": n_trained, **lora},
    "speed": speed,
}
report(args, results, ("torch", "open_clip_torch", "timm", "peft"))
