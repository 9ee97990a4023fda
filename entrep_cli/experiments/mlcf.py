"""The ablation of *Multi-Level CLS Token Fusion*: its components are taken away from a recipe of `clip-lora`.

The abstract says that every component adds, and gives no figures; which steps, and in which order, is ours.
"""

from __future__ import annotations

from typing import Any

from entrep_cli.errors import UsageError
from entrep_cli.experiments.ablation_table import Row
from entrep_cli.methods.clip_lora import ClipLoraRecipe

_TUNED = {"lora": "+ LoRA", "full": "+ full tuning"}


def rows(recipe: ClipLoraRecipe) -> list[Row]:
    """base, + LoRA, + levels, + slerp, + prompts: each is the recipe without the components that come after it.

    The base is the pretrained CLIP, frozen, its last level and a linear head. A recipe that tunes the
    whole tower has that in the place of LoRA; one that starts from random weights has nothing to
    freeze, and learns everything from the base on.
    """
    last = recipe.fusion.levels[-1]
    frozen = recipe.tune != "head" and recipe.backbone.weights != "none"
    components: list[tuple[str, str, bool, dict[str, Any]]] = [
        ("tuned", _TUNED.get(recipe.tune, ""), frozen, {"tune": "head"}),
        ("levels", "+ levels", len(recipe.fusion.levels) > 1, {"fusion": {"levels": [last]}}),
        ("slerp", "+ slerp", recipe.fusion.slerp, {"fusion": {"slerp": False}}),
        ("prompts", "+ prompts, contrast", recipe.texts.contrast > 0, {"texts": {"contrast": 0.0}}),
    ]
    used = [component for component in components if component[2]]
    if not used:
        raise UsageError("The recipe has none of the components that the ablation takes away.", hint="--recipe mlcf")
    base = "base, all learned" if recipe.tune == "full" and not frozen else "base, frozen"
    names = [("base", base), *((key, name) for key, name, *_ in used)]
    return [
        Row(key, name, [without for *_, without in used[i:]], against=names[i - 1][0] if i else None) for i, (key, name) in enumerate(names)
    ]
