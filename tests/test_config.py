"""Configurations are read back as they were, and what they do not know is refused."""

import json
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import attractor
from attractor.config import change, from_dict, override, settings, to_dict
from attractor.errors import ConfigError
from attractor import recipes
from attractor.recipes import PuzzleRecipe


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_survives_json(name: str) -> None:
    """to_dict, JSON, from_dict give the same recipe."""
    config = recipes.get(name)
    data = json.loads(json.dumps(to_dict(config)))
    if isinstance(config, PuzzleRecipe):
        assert from_dict(PuzzleRecipe, data) == config
    else:  # the family's configuration is saved beside the weights, with its own class
        model = from_dict(type(config.model), data.pop("model"))
        assert to_dict(model) == to_dict(config.model)
        assert change(config, data).train == config.train


def test_overriding_changes_one_field_and_nothing_else() -> None:
    """A path reaches any depth; numbers, null and booleans are read as such."""
    config = recipes.get("maze")
    changed = override(
        config, ["model.update.width=48", "train.seconds=null", "train.num_steps=7", "model.random_init=false"]
    )
    assert changed.model.update.width == 48
    assert changed.train.seconds is None
    assert changed.model.random_init is False
    assert override(changed, ["model.update.width=32"]).model.update == config.model.update


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("model.update.widht=3", "did you mean 'width'"),
        ("modle.noise=3", "did you mean 'model'"),
        ("train.seed=1.5", "must be int, not 1.5"),
        ("train.seed=true", "must be int"),
        ("train.seconds=soon", "must be float or null"),
        ("model=3", "is a group"),
        ("train.seed.x=3", "single value"),
        ("train.seed", "write path=value"),
        ("model.backprop_steps=99", "tracked=99"),
    ],
)
def test_what_cannot_be_set_is_refused_with_advice(assignment: str, says: str) -> None:
    """Unknown names get the nearest valid one; values of the wrong type are named."""
    with pytest.raises(ConfigError, match=says):
        override(recipes.get("maze"), [assignment])


def test_unknown_recipes_and_keys_are_refused() -> None:
    """Nothing is dropped in silence."""
    with pytest.raises(ConfigError, match="did you mean 'maze'"):
        recipes.get("mzae")
    data = to_dict(recipes.get("maze"))
    data["train"]["sede"] = 1
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        from_dict(PuzzleRecipe, data)


def test_every_setting_is_read_somewhere() -> None:
    """No configuration field is dead: each is mentioned as an attribute in the package."""
    source = "\n".join(p.read_text() for p in Path(attractor.__file__).parent.rglob("*.py"))

    def walk(config: object) -> set[str]:
        found = set(settings(type(config)))
        for name in settings(type(config)):
            if is_dataclass(getattr(config, name)):
                found |= walk(getattr(config, name))
        return found

    theirs = {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "use_cache",
        "tie_word_embeddings",
    }  # read by transformers
    for name in {field for made in RECIPES for field in walk(recipes.get(made))} - theirs:
        assert f".{name}" in source, f"the setting {name} is read nowhere"
