"""Configurations: to plain data and back, changes by path, and what is refused."""

import importlib
import json
import math
import pkgutil
import typing
from dataclasses import is_dataclass, replace
from pathlib import Path

import pytest

import attractor
from attractor import recipes
from attractor.config import all_paths, change, from_dict, override, settings, to_dict
from attractor.errors import ConfigError
from attractor.models.reasoning import AttractorReasonerConfig, TRMConfig
from attractor.nn import GatedConvolutionUpdateConfig, GridNetworkConfig
from attractor.recipes import PuzzleRecipe, SudokuDataConfig


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_survives_json(name: str) -> None:
    """to_dict, JSON, from_dict give the same recipe."""
    recipe = recipes.get(name)
    data = json.loads(json.dumps(to_dict(recipe)))
    restored = from_dict(type(recipe), data)
    assert to_dict(restored) == to_dict(recipe)
    assert type(restored.model) is type(recipe.model)
    if isinstance(recipe, PuzzleRecipe):
        assert restored == recipe


def test_overriding_changes_one_field_and_nothing_else() -> None:
    """A path reaches any depth; assignments are JSON; a mapping means the same."""
    recipe = recipes.get("maze")
    assignments = ["model.update.width=48", "train.seconds=null", "train.num_steps=7", "model.random_init=false"]
    changed = override(recipe, assignments)
    assert changed.model.update.width == 48
    assert changed.train.seconds is None
    assert changed.model.random_init is False
    assert override(changed, ["model.update.width=32"]).model.update == recipe.model.update
    values = {"model.update.width": 48, "train.seconds": None, "train.num_steps": 7, "model.random_init": False}
    assert recipes.override(recipe, values) == changed
    assert recipes.override(recipe, {}) == recipe
    update = recipes.get("sudoku/6x6").model.update
    assert recipes.override(recipe, {"model.update": update}).model.update == update


def test_a_type_chooses_the_class() -> None:
    """The new class starts from its defaults; other settings of it can be given at the same time."""
    recipe = recipes.get("sudoku/6x6")
    changed = override(recipe, {"model.type": "TRMConfig", "model.update.network.width": 64})
    assert type(changed.model) is TRMConfig
    assert changed.model.update == replace(TRMConfig().update, network=replace(TRMConfig().update.network, width=64))
    assert changed.train == recipe.train
    kept = override(recipe, ["model.type=AttractorReasonerConfig", "model.noise=0.5"])
    assert kept.model == replace(recipe.model, noise=0.5)
    update = override(recipe, ["model.update.type=GatedConvolutionUpdateConfig"]).model.update
    assert update == GatedConvolutionUpdateConfig()
    plain = ["supervision.windows=[]", "supervision.auxiliary_weight=0"]
    assert override(recipes.get("maze"), ["data.type=SudokuDataConfig", *plain]).data == SudokuDataConfig()


def test_a_union_is_told_by_its_type() -> None:
    """It is written, required, and checked."""
    data = to_dict(recipes.get("maze"))
    assert data["model"]["type"] == "AttractorReasonerConfig"
    assert data["model"]["update"]["type"] == "GatedConvolutionUpdateConfig"
    assert "type" not in data["train"]
    for changes, says in [
        ({"type": "AttractorReasonnerConfig"}, "did you mean 'AttractorReasonerConfig'"),
        ({"type": "TrainConfig"}, r"model\.type='TrainConfig' is unknown"),
        ({"type": "TRMConfig"}, "TRMConfig|has no setting"),
    ]:
        with pytest.raises(ConfigError, match=says):
            from_dict(PuzzleRecipe, data | {"model": data["model"] | changes})
    del data["model"]["type"]
    with pytest.raises(ConfigError, match="model can be of several types; add 'type': one of AttractorReasonerConfig"):
        from_dict(PuzzleRecipe, data)
    with pytest.raises(ConfigError, match="type must be 'TRMConfig', not 'HRMConfig'"):
        from_dict(TRMConfig, {"type": "HRMConfig"})
    assert from_dict(AttractorReasonerConfig, {"type": "AttractorReasonerConfig"}) == AttractorReasonerConfig()


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("model.update.widht=3", "did you mean 'model.update.width'"),
        ("modle.noise=3", "did you mean 'model.noise'"),
        ("train.lr=1e-3", r"unknown setting 'train\.lr'; did you mean 'train\.optimizer\.lr'"),
        ("lr=1e-3", r"did you mean 'train\.optimizer\.lr'"),
        ("train.optimiser.lr=1e-3", r"did you mean 'train\.optimizer\.lr'"),
        ("train.sede=1", "did you mean 'train.seed'"),
        ("train.optimizer.learning_rate=1", "unknown setting 'train.optimizer.learning_rate'; choose one of"),
        ("train.steps=1", "did you mean 'train.num_steps'"),
        ("optimizer.lr=1", r"unknown setting 'optimizer.lr'; did you mean 'train.optimizer.lr'"),
        ("steps=1", "did you mean .*'train.num_steps'"),
        ("widht=1", "did you mean 'model.update.width'"),
        ("train.seed=1.5", "must be int, not 1.5"),
        ("train.seed=true", "must be int"),
        ("train.seconds=soon", "must be float or null"),
        ("model=3", "is a group"),
        ("train.seed.x=3", "single value"),
        ("train.seed", "write path=value"),
        ("model.backprop_steps=99", "backprop_steps=99"),
        ("model.type=HRM", "did you mean 'HRMConfig'"),
    ],
)
def test_a_wrong_setting_is_refused_with_advice(assignment: str, says: str) -> None:
    """The message has the full path of a setting with that name elsewhere, or the nearest name."""
    with pytest.raises(ConfigError, match=says):
        override(recipes.get("maze"), [assignment])


def test_a_group_and_a_setting_in_it_are_not_both_given() -> None:
    """Neither silently replaces the other."""
    with pytest.raises(ConfigError, match="'train' and settings in it are both given"):
        override(recipes.get("maze"), {"train": 3, "train.seed": 1})


def test_unknown_recipes_and_keys_are_refused() -> None:
    """No name is silently ignored."""
    with pytest.raises(ConfigError, match="did you mean 'maze'"):
        recipes.get("mzae")
    with pytest.raises(ConfigError, match="did you mean 'language/tiny' or "):
        recipes.get("tiny")
    with pytest.raises(ConfigError, match="'maze/hard-trm' or 'maze/walls-trm'"):
        recipes.get("TRM")
    data = to_dict(recipes.get("maze"))
    data["train"]["sede"] = 1
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        from_dict(PuzzleRecipe, data)
    with pytest.raises(ConfigError, match=r"did you mean 'train\.seed'"):
        change(recipes.get("maze"), {"train": {"sede": 1}})
    with pytest.raises(ConfigError, match=r"PuzzleRecipe cannot be built .*'train'"):
        from_dict(PuzzleRecipe, {"model": data["model"], "data": data["data"]})


def test_every_setting_is_read_somewhere() -> None:
    """No setting is dead: each appears as an attribute in the package."""
    source = "\n".join(p.read_text() for p in Path(attractor.__file__).parent.rglob("*.py"))

    def names(config: object) -> set[str]:
        found = set(settings(type(config)))
        for name in settings(type(config)):
            if is_dataclass(getattr(config, name)):
                found |= names(getattr(config, name))
        return found

    # Read by transformers; and the settings of data, which are passed on as keyword arguments.
    ours = {"bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "tie_word_embeddings"}
    ours |= {"num_puzzles", "clues", "corner_fraction", "dfs_fraction", "style", "min_path", "max_path"}
    for name in {field for recipe in recipes.names() for field in names(recipes.get(recipe))} - ours:
        assert f".{name}" in source, f"the setting {name} is read nowhere"


def test_paths_name_every_setting() -> None:
    """In the order of the configuration, at any depth."""
    paths = all_paths(recipes.get("maze"))
    assert {"train.optimizer.lr", "model.update.width", "data.size"} <= set(paths)
    assert len(paths) == len(set(paths))


def config_classes() -> list[type]:
    """Every class in the package whose name ends in Config, and the recipes."""
    found = set()
    for module in pkgutil.walk_packages(attractor.__path__, "attractor."):
        if not module.name.startswith(("attractor.cli", "attractor.__main__")):
            for name, value in vars(importlib.import_module(module.name)).items():
                is_ours = isinstance(value, type) and value.__module__.startswith("attractor.")
                if is_ours and is_dataclass(value) and name.endswith(("Config", "Recipe", "Sampling")):
                    found.add(value)
    return sorted(found, key=lambda cls: cls.__name__)


def test_no_number_of_any_configuration_is_nan_infinite_or_huge() -> None:
    """Every field of every configuration that takes a number, so that a new field cannot forget it."""
    network = {"network": GridNetworkConfig()}
    required = {
        "TrainConfig": {"num_steps": 1},
        "TRMUpdateConfig": network,
        "PuzzleRecipe": None,
        "ReasonerConfig": None,
        "TwoPartConfig": None,
    }
    count = 0
    for cls in config_classes():
        given = required.get(cls.__name__, {})
        if given is None or "ABC" in str(cls.__bases__):
            continue
        base = recipes.get("language/tiny") if cls.__name__ == "LanguageRecipe" else cls(**given)
        values = {name: getattr(base, name) for name in settings(cls)}
        for name, hint in settings(cls).items():
            options = typing.get_args(hint) or (hint,)
            bad = [math.nan, math.inf, -math.inf] if float in options else []
            bad += [10**20, -(10**20)] if int in options or float in options else []
            for value in bad:
                count += 1
                with pytest.raises(ConfigError, match=name):
                    override(base, {name: value})
                with pytest.raises(ConfigError, match=name):
                    cls(**(values | {name: value}))
    assert count > 300
