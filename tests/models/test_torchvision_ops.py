"""torchvision beside a CPU build of torch imports after the hint, in a fresh process."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_torchvision_imports_after_the_mend():
    done = run(
        "import entrep_cli.torchvision_ops as hint, torchvision\n"
        "from torchvision.transforms import v2\n"
        "import torch; assert v2.functional.rotate(torch.zeros(3, 4, 4), 10.0).shape == (3, 4, 4)\n"
        "print(hint.declare_missing_ops())"
    )
    assert done.returncode == 0, done.stderr
    needed = done.stdout.strip() == "True"
    # The hint steps in exactly where the bare import fails.
    assert needed == (run("import torchvision").returncode != 0)
