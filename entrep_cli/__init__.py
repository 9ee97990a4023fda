"""entrep: from a folder of ENT endoscopy images to validated challenge submissions.

The verbs of the command line are functions here, with the same names and keywords, loaded on first use. Each returns a
`Result` with `tables()`, `frame()`, `to_dict()` and `to_latex()`. Nothing is printed: notes go to the logger `entrep_cli`,
warnings to the `warnings` module, and errors are `entrep_cli.errors.EntrepError`. (`entrep_cli.app` is the command line; what
`entrep app` serves is `entrep_cli.api.app.app`.)

    import entrep_cli as entrep

    entrep.split(data="phantom")
    entrep.train("clip-lora", recipe="tiny")
    print(entrep.evaluate(split="val").frame())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from entrep_cli.version import __version__

if TYPE_CHECKING:
    from entrep_cli.api.ablate import ablate as ablate
    from entrep_cli.api.ablate import ablation_rows as ablation_rows
    from entrep_cli.api.cache import cache_clear as cache_clear
    from entrep_cli.api.cache import cache_list as cache_list
    from entrep_cli.api.compare import compare as compare
    from entrep_cli.api.doctor import doctor as doctor
    from entrep_cli.api.embed import embed as embed
    from entrep_cli.api.ensemble import ensemble as ensemble
    from entrep_cli.api.evaluate import evaluate as evaluate
    from entrep_cli.api.explain import explain as explain
    from entrep_cli.api.export import export as export
    from entrep_cli.api.index import index as index
    from entrep_cli.api.inspect import inspect as inspect
    from entrep_cli.api.predict import predict as predict
    from entrep_cli.api.pretrain import pretrain as pretrain
    from entrep_cli.api.pretrain import pretraining_recipe as pretraining_recipe
    from entrep_cli.api.report import report as report
    from entrep_cli.api.reproduce import reproduce as reproduce
    from entrep_cli.api.search import search as search
    from entrep_cli.api.split import split as split
    from entrep_cli.api.synth import synth as synth
    from entrep_cli.api.train import effective_recipe as effective_recipe
    from entrep_cli.api.train import train as train
    from entrep_cli.api.validate import validate as validate
    from entrep_cli.api.weights import weights_check as weights_check
    from entrep_cli.api.weights import weights_fetch as weights_fetch
    from entrep_cli.api.weights import weights_list as weights_list

# Function -> its module below `entrep_cli.api`.
_FUNCTIONS = {
    **{name: name for name in "ablate compare doctor embed ensemble evaluate explain export index inspect predict pretrain".split()},
    **{name: name for name in "report reproduce search split synth train validate".split()},
    "ablation_rows": "ablate",
    "effective_recipe": "train",
    "pretraining_recipe": "pretrain",
    **{f"weights_{word}": "weights" for word in ("list", "check", "fetch")},
    **{f"cache_{word}": "cache" for word in ("list", "clear")},
}
__all__ = ["__version__", *_FUNCTIONS]


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = getattr(importlib.import_module(f"entrep_cli.api.{_FUNCTIONS[name]}"), name)
    globals()[name] = function
    return function


def __dir__() -> list[str]:
    return sorted({*globals(), *_FUNCTIONS})
