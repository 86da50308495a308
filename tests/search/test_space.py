"""What a search may try: ranges checked by the recipe's own rules, and settings that are never tried twice."""

import math

import pytest

from lora_cls.errors import RecipeError
from lora_cls.recipe import Range, Recipe, load_recipe, shipped_recipes
from lora_cls.search.space import default_space, distributions, next_setting, resolved

optuna = pytest.importorskip("optuna")
TFIDF = {"tfidf": {}}


def study_of(*settings, direction="maximize", known=None):
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(seed=0))
    for value, params in enumerate(settings):
        study.add_trial(optuna.create_trial(value=float(value), params=params, distributions=known))
    return study


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_has_a_space(name):
    """Its own setting lies in it, so that it is the first that is tried."""
    recipe = load_recipe(name)
    settings = resolved(recipe)
    first = next_setting(recipe, settings, study_of(known={}))
    values = recipe.model_dump()
    for field, value in first.items():
        section, _, key = field.partition(".")
        assert value == values[section][key], field
    assert set(first) == set(settings.space)


def test_kinds_have_spaces_of_their_own():
    spaces = {name: set(default_space(load_recipe(name))) for name in ("tfidf-logreg", "minilm-l6", "smollm2-135m")}
    assert spaces["tfidf-logreg"] == {"tfidf.C", "tfidf.min_df", "tfidf.sublinear_tf", "tfidf.class_weight"}
    assert "lora.r" not in spaces["minilm-l6"]
    assert spaces["smollm2-135m"] == spaces["minilm-l6"] | {"lora.r"}
    assert "head.learning_rate" not in default_space(load_recipe("smollm2-135m-generate"))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"train.learning_rat": {"low": 1e-5, "high": 1e-3}}, "Did you mean 'learning_rate'?"),
        ({"tfidf.C": {"low": -1, "high": 3}}, "tfidf.C: Input should be greater than or equal to 0.000001. Got -1.0"),
        ({"tfidf.min_df": {"low": 1.5, "high": 3}}, "tfidf.min_df: Input should be a valid integer"),
        ({"tfidf.class_weight": {"choices": ["balanced", "heavy"]}}, "Got 'heavy'"),
        ({"cv.n_splits": {"low": 2, "high": 5}}, "cv.n_splits: all trials share it"),
        ({"engine.num_threads": {"low": 1, "high": 2}}, "all trials share it"),
        ({"data.train": {"choices": ["a.csv", "b.csv"]}}, "data.train: all trials share it"),
        ({"task": {"choices": ["binary"]}}, "task: all trials share it"),
        ({"backbone.trust_remote_code": {"choices": [True]}}, "all trials share it"),
    ],
)
def test_a_space_is_checked_by_the_recipe(space, said):
    with pytest.raises(RecipeError, match="1 mistake") as error:
        resolved(load_recipe(TFIDF | {"sweep": {"space": space}}))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"low": 1}, "give low and high, or choices"),
        ({"low": 2, "high": 1}, "low must lie below high"),
        ({"low": 0, "high": 1, "log": True}, "log needs values above 0"),
        ({"low": 1, "high": 2, "choices": [1]}, "give either choices, or low and high"),
        ({"choices": [1, 1]}, "holds a value twice"),
        ({"low": 1, "high": 2, "log": True, "step": 1}, "log and step cannot both"),
    ],
)
def test_ranges_that_are_none(given, said):
    with pytest.raises(RecipeError, match=said):
        load_recipe(TFIDF | {"sweep": {"space": {"tfidf.C": given}}})


def test_all_mistakes_at_once():
    space = {"tfidf.D": {"low": 1, "high": 2}, "cv.n_splits": {"low": 2, "high": 5}}
    with pytest.raises(RecipeError, match="2 mistakes"):
        resolved(load_recipe(TFIDF | {"sweep": {"space": space}}))


def test_only_takes_what_has_a_range():
    recipe = load_recipe("minilm-l6")
    assert list(resolved(recipe, ["train.learning_rate"]).space) == ["train.learning_rate"]
    with pytest.raises(RecipeError, match="which has no range"):
        resolved(recipe, ["train.lr"])


def test_yaml_says_what_the_choices_are(tmp_path):
    """true is no text, null is no text, and a list is a list, there and back through Optuna's files."""
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "tfidf: {}\nsweep:\n  space:\n    tfidf.class_weight: {choices: [balanced, null]}\n"
        "    tfidf.sublinear_tf: {choices: [true, false]}\n    tfidf.word_ngram_range: {choices: [[1, 1], [1, 2]]}\n"
    )
    recipe = load_recipe(file)
    settings = resolved(recipe)
    known = distributions(recipe, settings)
    assert known["tfidf.class_weight"].choices == ("balanced", None)
    assert known["tfidf.sublinear_tf"].choices == (True, False)
    assert known["tfidf.word_ngram_range"].choices == ("[1, 1]", "[1, 2]")
    from lora_cls.search.coding import decoded

    assert decoded({"tfidf.word_ngram_range": "[1, 2]"}, settings) == {"tfidf.word_ngram_range": [1, 2]}


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_no_setting_twice_and_an_end(sampler):
    """A finite space is gone through, each setting once, whatever chooses."""
    recipe = load_recipe(TFIDF)
    space = {"tfidf.min_df": Range(low=1, high=3), "tfidf.sublinear_tf": Range(choices=[True, False])}
    recipe = recipe.model_copy(update={"sweep": load_recipe(TFIDF | {"sweep": {"sampler": sampler}}).sweep})
    recipe = recipe.model_copy(update={"sweep": recipe.sweep.model_copy(update={"space": space})})
    settings = resolved(recipe)
    known, study = distributions(recipe, settings), study_of()
    tried = []
    while (setting := next_setting(recipe, settings, study)) is not None:
        tried.append(setting)
        study.add_trial(optuna.create_trial(value=1.0, params=setting, distributions=known))
        assert len(tried) <= 6
    assert len({tuple(sorted(setting.items())) for setting in tried}) == 6
    assert tried[0] == {"tfidf.min_df": 2, "tfidf.sublinear_tf": True}, "the recipe's own comes first"


def test_a_grid_needs_values():
    with pytest.raises(RecipeError, match=r"tfidf\.C: a grid needs step, or choices"):
        resolved(load_recipe(TFIDF | {"sweep": {"sampler": "grid", "space": {"tfidf.C": {"low": 1, "high": 2}}}}))


def test_a_search_learns():
    """TPE draws near what did well: of 30 settings on a slope, the last 15 lie higher than the 10 at random."""
    recipe = load_recipe(TFIDF | {"sweep": {"space": {"tfidf.C": {"low": 0.01, "high": 100, "log": True}}}})
    settings = resolved(recipe)
    known, study = distributions(recipe, settings), study_of()
    values = []
    for _ in range(30):
        setting = next_setting(recipe, settings, study)
        values.append(setting["tfidf.C"])
        study.add_trial(optuna.create_trial(value=setting["tfidf.C"], params=setting, distributions=known))
    logs = [math.log(value) for value in values]
    assert sum(logs[15:]) / 15 > sum(logs[:10]) / 10 + 1


def test_a_run_does_not_read_the_section():
    """Nor does it keep a run from being resumed."""
    with_sweep = load_recipe(TFIDF | {"sweep": {"n_folds": 1}})
    assert with_sweep.identity() == load_recipe(TFIDF).identity()
    assert isinstance(with_sweep, Recipe)
