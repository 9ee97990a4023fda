"""What a pre-training of MICS is worth to a linear probe, with many labels and with few, on more images than its split holds back.

    entrep synth a --images 1400 --seed 1
    entrep synth b --images 1400 --seed 2
    entrep split --data a --ratios 50/50/0
    entrep pretrain mics --recipe mics-tiny --data a
    python benchmarks/linear_probe.py --data a --more b

The probe is the command's own: one logistic regression on frozen features of both encoders, its strength fixed, learned from
the labelled training part of --data and scored on its validation part and on all images of --more, other patients under
the same labels. With fewer labels as many are drawn of each class, once. Intervals are over exams; differences are paired.
"""

import argparse
from pathlib import Path

import numpy as np

from entrep_cli import console
from entrep_cli.data.catalog import Catalog
from entrep_cli.data.splits import read_catalog_and_split
from entrep_cli.evaluation.classification import ClassificationScores
from entrep_cli.evaluation.intervals import pooled
from entrep_cli.experiments.mics import SHOWN, probe_answers, probe_features
from entrep_cli.workspace import open_run

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, required=True, help="what the run was pre-trained on, with its split")
parser.add_argument("--more", type=Path, help="another dataset of the same classes, all of it scored")
parser.add_argument("--run", default="mics-pretrain")
parser.add_argument("--fractions", type=float, nargs="+", default=[1.0, 0.1, 0.05], help="of the training labels")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
console.set_mode("quiet")

catalog, split = read_catalog_and_split(args.data)
train, val = (catalog.subset(split.images(part)) for part in ("train", "val"))
scored = [val, *([Catalog.read(args.more)] if args.more else [])]
assert all(part.taxonomy.names == train.taxonomy.names for part in scored), "other classes"
name, features = probe_features(open_run(args.run), (train, *scored))
truth = np.concatenate([part.targets for part in scored])
groups = [f"{i} {group}" for i, part in enumerate(scored) for group in part.groups]  # the same name in two datasets is two exams
print(f"{len(truth)} images scored, of {len(set(groups))} exams")
rng = np.random.default_rng(args.seed)
for fraction in args.fractions:
    of_class = [np.flatnonzero(train.targets == c) for c in np.unique(train.targets)]
    picks = np.concatenate([rng.permutation(own)[: max(1, round(fraction * len(own)))] for own in of_class])
    samples = []
    for seen, *asked in features:
        predicted = probe_answers(seen[picks], train.targets[picks], np.concatenate(asked))
        samples.append(ClassificationScores(truth, predicted, train.taxonomy.names, groups).sample)
    before, after = (sample.intervals() for sample in samples)
    moved = pooled([samples[1]], [samples[0]])
    for score in SHOWN:
        print(f"{len(picks)} labels, {score}: {name} {before[score]}, after {after[score]}, difference {moved[score]}", flush=True)
