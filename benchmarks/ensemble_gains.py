"""What ensembles, folds, test-time augmentation and calibration add, each paired with what it is compared with.

    python benchmarks/ensemble_gains.py --data DATA --baseline frozen --runs clip-lora ensemble frozen-folds

For the baseline, every run, and each of them with flips (`--tta`): accuracy, macro F1, NLL, ECE and Recall@1 by class
on the dataset's test folder, and the difference from the baseline with its 95% interval, by paired bootstrap over
groups. Then calibration: ECE, NLL and Brier score of each as they are and at the temperature of validation, their
paired difference, and beside it the temperature that the scored images themselves would choose: how far the
validation part, which chose the epoch too, misleads. That one is for comparison only. All is written to
`runs/evaluation/ensemble-gains.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from entrep_cli import console
from entrep_cli.errors import RunError
from entrep_cli.evaluation.calibration import calibration_sample, fit_temperature, with_temperature
from entrep_cli.evaluation.intervals import Interval, Sample, pooled
from entrep_cli.evaluation.scored import QUERIES, Scored, open_scored
from entrep_cli.evaluation.selection import select
from entrep_cli.evaluation.subsets import score_subset
from entrep_cli.workspace import data_dir, runs_dir, write_json_atomic

SCORES = ("accuracy", "macro F1", "NLL", "ECE", "recall@1")


def samples(scored: Scored) -> list[Sample]:
    """Classification, calibration as it is, and retrieval by class, as functions of a resample."""
    found = score_subset(scored.images, scored.embeddings)
    shares = np.asarray(scored.embeddings.probabilities)
    likelihood = calibration_sample(shares, scored.images.targets, scored.images.groups)
    return [found.classification.sample, likelihood, found.retrieval["class"].sample]


def difference(own: list[Sample], theirs: list[Sample], key: str) -> Interval:
    """One score of a run less that of another, from the same resamples."""
    (a,), (b,) = ([s for s in some if key in s.names] for some in (own, theirs))
    return pooled([a], [b])[key]


def calibrated(scored: Scored) -> dict[str, object] | None:
    """The measures without and with the temperature of validation; None where the run has no validation part."""
    try:
        dataset = (scored.catalog, scored.division)
        t = select(scored.run, scored.model, dataset, temperature=True, flip=scored.flip).temperature
    except RunError:
        return None
    shares, targets, groups = np.asarray(scored.embeddings.probabilities), scored.images.targets, scored.images.groups
    plain, scaled = (calibration_sample(rows, targets, groups) for rows in (shares, with_temperature(shares, t.value)))
    own = fit_temperature(shares, targets)
    best = calibration_sample(with_temperature(shares, own), targets).intervals(resamples=0)
    gain = pooled([scaled], [plain])
    return {
        "temperature": t.value,
        "of_the_scored_images": own,
        "NLL_at_that": best["NLL"].value,
        **{key: (plain.intervals()[key], scaled.intervals()[key], gain[key]) for key in gain},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--runs", nargs="*", default=[])
    parser.add_argument("--split", default=QUERIES)
    given = parser.parse_args()
    console.set_mode("human")
    root = data_dir(given.data)
    document: dict[str, dict] = {}
    rows, differences, reliable = [], [], []
    baseline: list[Sample] = []
    for name in (given.baseline, *given.runs):
        plain: list[Sample] = []
        for flip in (False, True):
            scored = open_scored(name, root, given.split, flip=flip)
            own = samples(scored)
            baseline, plain = baseline or own, plain or own
            label = f"{name}{' --tta' if flip else ''}"
            values = {key: s.intervals()[key] for key in SCORES for s in own if key in s.names}
            rows.append((label, *values.values()))
            told = {"scores": {key: i.as_dict() for key, i in values.items()}}
            for other, theirs in ((given.baseline, baseline), (name, plain)):
                if own is not theirs and (other != name or flip) and (label, other) not in [row[:2] for row in differences]:
                    gains = {key: difference(own, theirs, key) for key in SCORES}
                    differences.append((label, other, *gains.values()))
                    told[f"less {other}"] = {key: i.as_dict() for key, i in gains.items()}
            if found := calibrated(scored):
                measures = [key for key, value in found.items() if isinstance(value, tuple)]
                reliable += [(label if key == measures[0] else "", key, *found[key]) for key in measures]
                own_t = f"{found['of_the_scored_images']:.3f}"
                reliable.append(("", "T", f"{found['temperature']:.3f}", f"on these images {own_t}", f"NLL {found['NLL_at_that']:.3f}"))
                told["calibration"] = {k: [i.as_dict() for i in v] if isinstance(v, tuple) else v for k, v in found.items()}
            document[label] = told
    console.table(f"On {given.split}, with 95% intervals", ["run", *SCORES], rows)
    console.table("What each adds (paired, 95%)", ["run", "less", *SCORES], differences)
    columns = ["run", "measure", "as it is", "calibrated", "difference (paired)"]
    console.table("Calibration by the temperature of validation", columns, reliable)
    path = runs_dir() / "evaluation" / "ensemble-gains.json"
    write_json_atomic(path, document)
    console.say(f"Written: {path}")


if __name__ == "__main__":
    main()
