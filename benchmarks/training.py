"""How long is a step of `clip-lora` beside CLIP-LoRA's own, and a head on kept vectors beside scikit-learn's?

    python benchmarks/training.py --batch 32 --out training.json
    python benchmarks/training.py --repeats 1          # a quick look

**Step.** CLIP-LoRA's method (arXiv 2405.18541, github.com/MaxZanella/CLIP-LoRA) is made again here from its
published description and code, in our words: `nn.MultiheadAttention` gives way to a q, a k, a v and an output
Linear over scaled_dot_product_attention; an adapted Linear adds dropout(x) times the whole matrix B A, which is
multiplied out first (loralib/layers.py, LinearLoRA.forward), so that q, k and v cost twice; a step embeds one prompt
a class, all 77 places of it, and the images, and takes the cross-entropy of 100 times their cosines. Ours takes the
same batch, the prompts in two languages, a finding an image, the fusion of four levels, head and contrast. Both have
the same random weights, rank, dropout and optimizer. `ratio` is a peer's time over ours, above 1 where ours is
faster. `ours, their loss` is our towers under their loss and prompts.

**Head.** 1,300 vectors of 768 numbers in 7 classes, 300 more for validation: 100 epochs of ours (`linear` and `mlp`)
beside a plain loop over the same head with torch's own AdamW, and its solved kind (`logistic`) beside scikit-learn's
LogisticRegression. Each with its accuracy on validation, for speed alone says nothing; both loops keep the best epoch.
"""

import copy
import tempfile
from pathlib import Path

import entrep_cli.torchvision_ops  # noqa: F401 - before open_clip imports torchvision

import harness
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from entrep_cli import console
from entrep_cli.data.taxonomy import Taxonomy
from entrep_cli.methods.clip_lora import ClipLora, ClipLoraRecipe
from entrep_cli.models.clip import encode_texts, read_architecture
from entrep_cli.models.device import autocast, choose_device, choose_precision
from entrep_cli.models.heads import Head, HeadSettings
from entrep_cli.models.lora import add_lora
from entrep_cli.recipes.recipe import build_recipe
from entrep_cli.training.loop import LoopSettings, epoch_generator, fit
from entrep_cli.training.losses import clamped_scale, multi_positive_contrast
from entrep_cli.workspace import Run

parser = harness.parser(__doc__)
parser.add_argument("--model", default="ViT-B-16-quickgelu", help="any open_clip configuration with towers of open_clip")
parser.add_argument("--levels", type=int, nargs="+", default=[3, 6, 9, 12], help="blocks that are fused")
parser.add_argument("--batch", type=int, default=8, help="images a step; 32 is CLIP-LoRA's")
parser.add_argument("--precision", default="auto", help="of both: auto, fp32, bf16, fp16")
parser.add_argument("--device", default="auto")
args = parser.parse_args()
console.set_mode("quiet")
device, device_reason = choose_device(args.device)
precision, precision_reason = choose_precision(args.precision, device)
RANK, ALPHA, DROPOUT, RATE = 2, 1, 0.25, 2e-4


class PeerLinear(nn.Module):
    """CLIP-LoRA's adapted Linear: W x + b + scaling * (B A) dropout(x), with B A multiplied out."""

    def __init__(self, base, adapted):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.dropout = nn.Dropout(DROPOUT)
        self.a = nn.Parameter(torch.empty(RANK, base.in_features)) if adapted else None
        self.b = nn.Parameter(torch.zeros(base.out_features, RANK)) if adapted else None
        if adapted:
            nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, x):
        y = self.base(x)
        return y if self.a is None else y + self.dropout(x) @ (self.b @ self.a).T * (ALPHA / RANK**0.5)


class PeerAttention(nn.Module):
    def __init__(self, stock):
        super().__init__()
        self.heads, self.batch_first = stock.num_heads, stock.batch_first
        made = []
        for weight, bias in zip(stock.in_proj_weight.chunk(3), stock.in_proj_bias.chunk(3)):
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight, linear.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
            made.append(PeerLinear(linear, True))
        self.q, self.k, self.v = made
        self.out = stock.out_proj

    def forward(self, query, key, value, need_weights=False, attn_mask=None, **_):
        split = [p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p, x in ((self.q, query), (self.k, key), (self.v, value))]
        x = F.scaled_dot_product_attention(*split, None if attn_mask is None else attn_mask.to(split[0].dtype))
        return self.out(x.transpose(1, 2).flatten(2)), None


def peer_of(model):
    """An open_clip model with CLIP-LoRA's adapters in all layers of both towers."""
    made = copy.deepcopy(model).requires_grad_(False)
    for name, module in list(made.named_modules()):
        if type(module) is nn.MultiheadAttention:
            assert module.batch_first
            made.set_submodule(name, PeerAttention(module))
    return made.to(device).train()


taxonomy = Taxonomy.entrep()
settings = {"fusion": {"levels": args.levels}, "backbone": {"name": args.model}}
recipe = build_recipe(ClipLoraRecipe, settings, {"lora": {"rank": RANK, "alpha": ALPHA, "dropout": DROPOUT}})
torch.manual_seed(0)
ours = ClipLora(read_architecture(args.model), recipe, taxonomy)
peer = peer_of(ours.backbone)
add_lora(ours.backbone, recipe.lora)
ours.to(device).train()
pixels = torch.randint(0, 256, (args.batch, 3, recipe.image.size, recipe.image.size), dtype=torch.uint8, device=device)
targets = torch.arange(args.batch, device=device) % len(taxonomy)
prompts = [c.prompts["en"][0] for c in taxonomy.classes]
of_class = ours.tokens(prompts)
all_prompts = ours.tokens([own[0] for c in taxonomy.classes for own in c.prompts.values()])
findings = ours.tokens([f"{c.prompts['en'][0]}, finding {i}" for i, c in enumerate(taxonomy.classes * 8)][: args.batch])


def step(parameters, loss_of):
    optimizer = torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=RATE)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def by_cosine(images, texts):
    return F.cross_entropy(100 * F.normalize(images.float(), dim=1) @ F.normalize(texts.float(), dim=1).T, targets)


def our_loss():
    with autocast(device, precision):
        embeddings = ours(pixels)
    loss = F.cross_entropy(ours.logits(embeddings), targets)
    with autocast(device, precision):
        prompt_rows, finding_rows = ours.encode(all_prompts), ours.encode(findings)
    classes = F.normalize(prompt_rows.view(len(taxonomy), -1, prompt_rows.shape[1]).mean(dim=1), dim=1)
    positives = torch.cat([F.one_hot(targets, len(taxonomy)).bool(), torch.eye(args.batch, device=device).bool()], dim=1)
    scale = clamped_scale(ours.backbone.logit_scale)
    return loss + 0.5 * multi_positive_contrast(embeddings, torch.cat([classes, finding_rows]), positives, scale)


def our_towers():
    with autocast(device, precision):
        return by_cosine(ours.backbone.encode_image(ours.normalise(pixels)), encode_texts(ours.backbone, of_class))


def peer_loss():
    with autocast(device, precision):
        return by_cosine(peer.encode_image(ours.normalise(pixels)), peer.encode_text(of_class))


steps = {
    "ours": step(ours.parameters(), our_loss),
    "ours, their loss": step(ours.parameters(), our_towers),
    "CLIP-LoRA": step(peer.parameters(), peer_loss),
}
for run_step in steps.values():
    run_step()
found = harness.fastest(steps, args.repeats)
mine = found["ours"][0]
results = {"step": {name: {"seconds": seconds, "ratio": seconds / mine} for name, (seconds, _) in found.items()}}
like = found["CLIP-LoRA"][0] / found["ours, their loss"][0]
results["step"]["CLIP-LoRA over ours, their loss"] = like
for name, row in results["step"].items():
    print(f"step, {name}: {row:.2f}" if isinstance(row, float) else f"step, {name}: {row['seconds']:.2f} s, ratio {row['ratio']:.2f}")

rng = np.random.default_rng(0)
centres = rng.standard_normal((7, 768))
labels = rng.integers(7, size=1600)
vectors = torch.from_numpy((centres[labels] + 9 * rng.standard_normal((1600, 768))).astype(np.float32))
wanted = torch.from_numpy(labels)
train, val = slice(0, 1300), slice(1300, None)


def accuracy(logits):
    return float((logits.argmax(dim=1) == wanted[val]).float().mean())


def by_loop(kind):
    torch.manual_seed(0)
    head = Head(768, 7, HeadSettings(kind=kind))

    def losses(epoch):
        order = torch.randperm(1300, generator=epoch_generator(0, epoch))
        for pick in order.split(64):
            yield F.cross_entropy(head(vectors[train][pick]), wanted[train][pick])

    @torch.no_grad()
    def validate(_):
        logits = head(vectors[val])
        return {"val_loss": float(F.cross_entropy(logits, wanted[val])), "val_accuracy": accuracy(logits)}

    with tempfile.TemporaryDirectory() as folder:
        how = {"monitor": "val_accuracy", "seed": 0}
        return fit(head, losses, 21, validate, LoopSettings(patience=0), Run(Path(folder)), **how).scores["val_accuracy"]


def by_plain_loop(kind):
    torch.manual_seed(0)
    head, best = Head(768, 7, HeadSettings(kind=kind)), 0.0
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in range(100):
        head.train()
        for pick in torch.randperm(1300).split(64):
            optimizer.zero_grad()
            F.cross_entropy(head(vectors[train][pick]), wanted[train][pick]).backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            best = max(best, accuracy(head(vectors[val])))
    return best


@torch.no_grad()
def by_solving():
    """As `dinov2` with head.kind = logistic: the best of all strengths on validation."""
    best = 0.0
    for c in HeadSettings().c:
        head = Head(768, 7, HeadSettings(kind="logistic"))
        head.standardise(vectors[train])
        head.solve(head.body(vectors[train]), wanted[train], c, None)
        best = max(best, accuracy(head(vectors[val])))
    return best


heads = {
    "ours, linear": lambda: by_loop("linear"),
    "plain loop, linear": lambda: by_plain_loop("linear"),
    "ours, mlp": lambda: by_loop("mlp"),
    "plain loop, mlp": lambda: by_plain_loop("mlp"),
    "ours, logistic (6 strengths)": by_solving,
}
if harness.peer("sklearn.linear_model", "scikit-learn"):
    from sklearn.linear_model import LogisticRegression

    def by_sklearn(strengths):
        fitted = (LogisticRegression(C=c, max_iter=1000).fit(vectors[train], wanted[train]) for c in strengths)
        return max(float((f.predict(vectors[val]) == labels[val]).mean()) for f in fitted)

    heads["scikit-learn (6 strengths)"] = lambda: by_sklearn(HeadSettings().c)
found = harness.fastest(heads, args.repeats)
like = {"plain loop, linear": "ours, linear", "plain loop, mlp": "ours, mlp", "scikit-learn (6 strengths)": "ours, logistic (6 strengths)"}
results["head"] = {
    name: {"seconds": seconds, "ratio": seconds / found[like.get(name, name)][0], "val_accuracy": score}
    for name, (seconds, score) in found.items()
}
for name, row in results["head"].items():
    print(f"head, {name}: {row['seconds']:.2f} s, ratio {row['ratio']:.2f}, accuracy {row['val_accuracy']:.3f}")
results["chosen"] = {"device": f"{device} ({device_reason})", "precision": f"{precision} ({precision_reason})"}
harness.report(args, results, ("torch", "open_clip_torch", "peft"))
