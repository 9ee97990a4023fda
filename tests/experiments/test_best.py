"""The factors of a recipe: each a row of its own that changes the recipe, and none that it has already."""

from __future__ import annotations

from entrep_cli.experiments.best import rows
from entrep_cli.methods.clip_lora import ClipLoraRecipe
from entrep_cli.recipes.recipe import build_recipe, read_recipe
from entrep_cli.retrieval.refinement import STEPS


def test_every_row_is_the_recipe_with_one_thing_changed():
    recipe = build_recipe(ClipLoraRecipe, read_recipe("tiny"))
    made = rows(recipe)
    assert made[0].key == "base" and not made[0].settings and {row.against for row in made[1:]} == {"base"}
    assert len({row.key for row in made}) == len({row.name for row in made}) == len(made)
    trained = [build_recipe(ClipLoraRecipe, recipe.model_dump(), *row.settings) for row in made if not row.refine]
    assert all(a != b for i, a in enumerate(trained) for b in trained[:i])
    assert [row.refine for row in made if row.refine] == [*((step,) for step in STEPS), STEPS]


def test_what_the_recipe_has_is_no_row():
    keys = {row.key for row in rows(build_recipe(ClipLoraRecipe, read_recipe("tiny")))}
    assert {"loss-focal", "mix-mixup", "model-gem", "size-224"} <= keys
    has = build_recipe(ClipLoraRecipe, read_recipe("tiny"), {"loss": {"focal": 2.0}, "mixing": {"mixup": 0.33}, "image": {"size": 224}})
    assert keys - {row.key for row in rows(has)} == {"loss-focal", "mix-mixup", "size-224"}
