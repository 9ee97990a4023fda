"""Make `import torchvision` work beside a CPU build of torch.

The registries' torchvision is built for CUDA. Beside a CPU build of torch its compiled extension
cannot load, and the import fails with `operator torchvision::nms does not exist`, because the Python
side registers a shape function for an operator that nobody defined. entrep uses only transforms, for
which no compiled operator is needed: declaring the two schemas is enough. Import this module before
anything that imports torchvision (timm, open_clip and peft do).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_fragment: torch.library.Library | None = None  # the schemas live as long as this object


def declare_missing_ops() -> bool:
    """Declare the missing operators if torchvision's extension cannot load; True where it was needed."""
    global _fragment
    if _fragment is not None or "torchvision" in sys.modules or _extension_loads():
        return _fragment is not None
    _fragment = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS.values():
        _fragment.define(schema)
    return True


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True  # not installed: the import itself will say so
    libraries = sorted(Path(spec.origin).parent.glob("_C.*")) or sorted(Path(spec.origin).parent.glob("_C*.so"))
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:
        return False
    return all(hasattr(torch.ops.torchvision, name) for name in _SCHEMAS)


declare_missing_ops()
