"""How do time and memory of the commands grow with the number of images?

    python benchmarks/growth.py --out growth.json                  # 1e3 and 1e4 images, some minutes
    python benchmarks/growth.py --images 1000 10000 100000         # an hour or more, most of it to make and train
    python benchmarks/growth.py --images 200 400 --repeats 1       # a quick look

Every command runs in a process of its own; the fastest of `--repeats` counts, in seconds of CPU (of all its
threads), which other load on the machine changes little, and the most memory it held.
The images are small (48 x 32) and made up, in exams of five; the model is a tiny network trained for one
epoch. `exponent` is p in seconds ~ n^p from one size to the next, after the time that the command takes for
210 images (its start) is subtracted; likewise of memory. Sorting n things has an exponent of about 1.1, whatever
compares all pairs one of 2. `start` is the time of the commands that import no heavy library.
"""

import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from harness import parser, report
from PIL import Image

CLASSES = ("nose-right", "nose-left", "ear-right", "ear-left", "vc-open", "vc-closed", "throat")
SMALL = "--backbone test_resnet --weights none --set tune=head --set image.size=32 --set train.batch_size=64 --epochs 1".split()
FEW = 210
cli = parser(__doc__)
cli.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
args = cli.parse_args()


def make(folder, n):
    """n images in the contest's layout, and a test folder of n // 10 with a submission and its truth."""
    rng = np.random.default_rng(n)
    truth, counts = {}, {"train": n, "test": max(1, n // 10)}
    for part, size in counts.items():
        (folder / part / "imgs").mkdir(parents=True)
        labels = {f"{part}_{i:06}.png": CLASSES[i // 5 % 7] for i in range(size)}
        for name in labels:
            cells = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(cells).resize((48, 32), Image.Resampling.BILINEAR).save(folder / part / "imgs" / name, compress_level=1)
        with open(folder / part / "groups.csv", "w", newline="") as file:
            csv.writer(file).writerows([("image", "group"), *((name, f"{part} exam {i // 5}") for i, name in enumerate(labels))])
        truth[part] = labels
    (folder / "train" / "cls.json").write_text(json.dumps(truth["train"]))
    (folder / "test" / "cls.csv").write_text("".join(f"{name}\n" for name in truth["test"]))
    (folder / "test" / "truth_cls.json").write_text(json.dumps(truth["test"]))


def ran(line, runs, data):
    """CPU seconds and MiB of one command."""
    log = runs.parent / "log.txt"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "entrep_cli", "--quiet", *line],
            stdout=file,
            stderr=file,
            env={**os.environ, "ENTREP_RUNS": str(runs), "ENTREP_DATA": str(data)},
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1 if line[0] == "inspect" else 0):  # inspect exits 1 where something is to be corrected
        sys.exit(f"{line} ended with {process.returncode}: {log.read_text()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measured(n):
    """{command: (CPU seconds, MiB)} of a dataset of n images."""
    with tempfile.TemporaryDirectory() as folder:
        data, runs = Path(folder) / "data", Path(folder) / "runs"
        make(data, n)
        found = {}

        def measure(name, *line, times=args.repeats):
            passes = [ran(line, runs, data) for _ in range(times)]
            found[name] = min(p[0] for p in passes), max(p[1] for p in passes)
            # At once: of the largest sizes the whole takes an hour.
            print(f"{n} images: {name} {found[name][0]:.1f} s, {found[name][1]:.0f} MiB", flush=True)

        measure("split", "split")
        measure("inspect", "inspect")
        measure("train, once", "train", "dinov2", *SMALL, times=1)
        measure("embed, once", "embed", times=1)
        measure("embed (cached)", "embed")
        measure("index", "index")
        measure("search", "search", str(data / "test" / "imgs" / "test_000000.png"))
        measure("evaluate", "evaluate")
        measure("predict, track 1, once", "predict", "--track", "1", times=1)
        submission = [str(runs / "dinov2" / "submissions" / "track1.zip"), "--track", "1"]
        truth = str(data / "test" / "truth_cls.json")
        measure("validate", "validate", *submission)
        measure("evaluate --submission", "evaluate", "--submission", submission[0], "--truth", truth, "--track", "1")
        measure("--help", "--help")
        return found


def exponents(row, small, large):
    """{cost: p} in cost ~ n^p from one size to the next; None where a cost is within noise of the start."""
    found = {}
    for cost, start in row["start"].items():
        a, b = row[str(small)][cost] - start, row[str(large)][cost] - start
        found[cost] = math.log(b / a) / math.log(large / small) if min(a, b) > 0.05 * start else None
    return found


few = measured(FEW)
print(
    "start: " + ", ".join(f"{name} {few[name][0]:.1f} s" for name in ("--help", "split", "validate", "evaluate --submission")), flush=True
)
rows, before = {}, None
for n in sorted(args.images):
    found = measured(n)
    for name, (seconds, mebibytes) in found.items():
        row = rows.setdefault(name, {"start": {"seconds": few[name][0], "MiB": few[name][1]}})
        row[str(n)] = {"seconds": seconds, "MiB": mebibytes}
        if before:
            row[f"exponent to {n}"] = exponents(row, before, n)
    before = n
for name, row in rows.items():
    for size, cell in row.items():
        if size.startswith("exponent"):
            print(f"{name}, {size}: " + ", ".join(f"{cost} {'-' if p is None else format(p, '.2f')}" for cost, p in cell.items()))
report(args, rows, ("torch", "timm", "faiss-cpu"))
