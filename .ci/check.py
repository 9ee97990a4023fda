"""Whether the demo and the small Foregut run still reach, on phantom data, what they are said to reach."""

import json
import sys
from pathlib import Path

runs = Path(sys.argv[1])
track1, track2, track3 = (json.loads((runs / f"clip-lora/evaluation/track{n}.json").read_text()) for n in (1, 2, 3))
foregut = json.loads((runs / "foregut/paper/queries.json").read_text())
checks = [
    ("track 1 accuracy", track1["classification"]["accuracy"]["value"], 0.95),
    ("track 2 Recall@1 by class, own exam masked", track2["retrieval"]["class"]["recall@1"]["value"], 0.95),
    ("track 3 Recall@1 by finding", track3["retrieval"]["finding"]["recall@1"]["value"], 3 * track3["chance"]["finding"]),
    ("accuracy of the hybrid", foregut["classes"]["hybrid"]["accuracy"]["value"], 0.95),
]
for name, value, least in checks:
    print(f"{'ok' if value >= least else 'TOO LOW':8} {name}: {value:.3f}, at least {least:.3f}")
sys.exit(any(value < least for _, value, least in checks))
