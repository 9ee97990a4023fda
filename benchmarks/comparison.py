"""How often does `compare` call equal runs different, and how often does it see a planted difference?

    python benchmarks/comparison.py --out comparison.json
    python benchmarks/comparison.py --repetitions 50             # ten seconds

Each repetition makes up the answers of runs on frames of exams and compares them as `entrep compare`
does. A frame is right where

    sqrt(.2) exam + sqrt(.3) frame + sqrt(own) exam of the run + sqrt(.5 - own) frame of the run < t

all standard normal, so that the accuracy is exactly Phi(t); `own` is how far a run fails whole exams
that another run does not. Rates are the share of repetitions in which a test said p <= 0.05, with their
exact 95% interval; of equal runs they should be 5% or less, of others near 100%. `swap` is the test that
decides the marks. The intervals of the difference are checked likewise: how many hold the truth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import binomtest, norm

from entrep_cli.evaluation.comparison import compare, confusion_score, mean_score
from entrep_cli.evaluation.metrics import METRICS

LEVEL = 0.05
CLASSES = 7


@dataclass(frozen=True)
class Setting:
    """What is made up.

    Attributes:
        exams, frames: number of exams, and the mean number of their frames (1 and more, geometric).
        accuracy: of each run, as probabilities.
        own: of each run, see above.
        score: `accuracy` or `macro F1` of 7 classes.
    """

    what: str
    exams: int
    frames: int
    accuracy: tuple[float, ...] = (0.8, 0.8)
    own: tuple[float, ...] = (0.2, 0.2)
    score: str = "accuracy"
    shared_exam: float = 0.2


def settings() -> list[Setting]:
    made = []
    for exams in (8, 20, 50, 150):
        made += [Setting(f"{points} points apart" if points else "equal", exams, 6, (0.8, 0.8 + points / 100)) for points in (0, 2, 5, 10)]
    made += [Setting("equal, many frames an exam", 50, 20), Setting("5 points apart, many frames an exam", 50, 20, (0.8, 0.85))]
    made += [Setting("equal in accuracy, only one fails whole exams", exams, 6, own=(0.45, 0.0)) for exams in (8, 20, 50, 150)]
    independent = {"own": (0.0, 0.0), "shared_exam": 0.0}
    made.append(Setting("equal, frames independent", 50, 6, **independent))
    made.append(Setting("5 points apart, frames independent", 50, 6, (0.8, 0.85), **independent))
    for points in (0, 5, 10):
        what = f"{points} points apart" if points else "equal"
        made.append(Setting(what, 50, 6, (0.8, 0.8 + points / 100), score="macro F1"))
    made.append(Setting("four equal runs: any mark at all", 50, 6, (0.8,) * 4, (0.2,) * 4))
    return made


def answers(setting: Setting, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """(n,) exam of each frame, and of each run (n,) whether it is right."""
    sizes = rng.geometric(1 / setting.frames, size=setting.exams)
    exam = np.repeat(np.arange(setting.exams), sizes)

    def normal(share: float, of_exam: bool) -> np.ndarray:
        drawn = rng.standard_normal(setting.exams)[exam] if of_exam else rng.standard_normal(len(exam))
        return np.sqrt(share) * drawn

    shared = normal(setting.shared_exam, True) + normal(0.5 - setting.shared_exam, False)
    thresholds = norm.ppf(setting.accuracy)
    return exam, [shared + normal(own, True) + normal(0.5 - own, False) < t for own, t in zip(setting.own, thresholds)]


def totals(setting: Setting, exam: np.ndarray, hits: list[np.ndarray], rng: np.random.Generator) -> list:
    if setting.score == "accuracy":
        return [mean_score(h, exam) for h in hits]
    truth = rng.integers(CLASSES, size=len(exam))
    wrong = [(truth + rng.integers(1, CLASSES, size=len(exam))) % CLASSES for _ in hits]
    return [confusion_score(METRICS["macro F1"], truth, np.where(h, truth, w), CLASSES, exam) for h, w in zip(hits, wrong)]


def rate(times: int) -> dict[str, float]:
    found = binomtest(times, args.repetitions)
    low, high = found.proportion_ci()
    return {"rate": found.statistic, "low": float(low), "high": float(high)}


def measured(setting: Setting, seed: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(seed)
    called: dict[str, int] = {}
    held = 0
    for _ in range(args.repetitions):
        exam, hits = answers(setting, rng)
        found = compare(totals(setting, exam, hits, rng), level=LEVEL, resamples=args.resamples, permutations=args.permutations)
        first, several = found.differences[0], len(found.differences) > 1
        said = {"mark": any(found.marks), "swap": any(d.p <= LEVEL for d in found.differences)}
        said["bootstrap"] = any(d.p_bootstrap <= LEVEL for d in found.differences)
        if first.p_mcnemar is not None:
            said["McNemar"] = any(d.p_mcnemar <= LEVEL for d in found.differences)
        for test, yes in said.items():
            called[test] = called.get(test, 0) + yes
        truth = setting.accuracy[0] - setting.accuracy[1]
        held += not several and first.value.low <= truth <= first.value.high
    if not several:
        called.pop("swap")  # of one pair there is nothing to correct: the mark is the test
        if setting.score == "accuracy":
            called["interval holds the truth"] = held
    return {test: rate(times) for test, times in called.items()}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--repetitions", type=int, default=1000)
parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
parser.add_argument("--permutations", type=int, default=2000, help="drawn swaps; `entrep compare` draws 10,000")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--out", help="a JSON file for the numbers")
args = parser.parse_args()

start, rows = time.perf_counter(), []
for i, setting in enumerate(settings()):
    found = measured(setting, args.seed + i)
    rows.append({**asdict(setting), "called": found})
    told = ", ".join(f"{test} {100 * r['rate']:.1f}% [{100 * r['low']:.1f}, {100 * r['high']:.1f}]" for test, r in found.items())
    print(f"{setting.exams} exams x {setting.frames}, {setting.score}, {setting.what}: {told}", flush=True)
seconds = time.perf_counter() - start
machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
report = {"settings": vars(args), "machine": machine, "versions": {"numpy": np.__version__}, "seconds": round(seconds, 1), "results": rows}
if args.out:
    with open(args.out, "w", encoding="utf-8") as file:
        file.write(json.dumps(report, indent=2) + "\n")
print(f"{seconds:.0f} s")
