"""What a search may try: fields of a recipe with their values, checked, and the next setting to try."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_cls.errors import RecipeError, shown
from lora_cls.recipe import Range, Recipe, Sweep, flatten, load_recipe
from lora_cls.search.coding import Params, coded
from lora_cls.search.optuna_files import load_optuna

_FIXED_SECTIONS = ("blend", "cv", "distill", "engine", "sweep", "tracking")
_SEARCHED_DATA = ("chunk_combine", "chunk_stride", "long_text", "max_chunks", "max_length")
_FIXED = ("task", "backbone.trust_remote_code")
_MANY = 100_000  # more combinations than a grid goes through

_FULL = {
    "train.learning_rate": Range(low=1e-5, high=2e-4, log=True),
    "head.learning_rate": Range(low=1e-4, high=1e-2, log=True),
    "train.num_train_epochs": Range(low=2, high=6),
}
_LORA = {
    "train.learning_rate": Range(low=5e-5, high=2e-3, log=True),
    "head.learning_rate": Range(low=1e-4, high=1e-2, log=True),
    "train.num_train_epochs": Range(low=2, high=6),
}
_DECODER_LORA = _LORA | {
    "train.learning_rate": Range(low=5e-5, high=1e-3, log=True),
    "train.num_train_epochs": Range(low=1, high=4),
}
_TFIDF = {
    "tfidf.C": Range(low=0.03, high=30.0, log=True),
    "tfidf.min_df": Range(low=1, high=5),
    "tfidf.sublinear_tf": Range(choices=[True, False]),
    "tfidf.class_weight": Range(choices=["balanced", None]),
}


def default_space(recipe: Recipe) -> dict[str, Range]:
    """What is tried where the recipe does not say: by its kind, a decoder being one that pools the last token; batches
    and ranks about the recipe's own, which may be all that fits into the memory."""
    if recipe.tfidf is not None:
        return dict(_TFIDF)
    decoder = recipe.head.pooling == "last_token"
    space = dict(_FULL if recipe.lora is None else _DECODER_LORA if decoder else _LORA)
    batch = recipe.train.per_device_train_batch_size
    space["train.per_device_train_batch_size"] = Range(choices=sorted({max(1, batch // 2), batch, 2 * batch}))
    if recipe.lora is not None:
        space["lora.r"] = Range(choices=sorted({8, 16, 32, 64, recipe.lora.r}))
    if recipe.head.kind == "generate":
        del space["head.learning_rate"]
    return space


def resolved(recipe: Recipe, only: Sequence[str] = ()) -> Sweep:
    """The recipe's `sweep` section with its space, checked.

    Parameters
    ----------
    only : fields to search, of the recipe's space or the default one; all where empty

    Raises
    ------
    RecipeError
        With every field that is none, that trials share, or that cannot have such values.
    """
    settings = recipe.sweep or Sweep()
    space = settings.space or default_space(recipe)
    if only:
        known = default_space(recipe) | space
        unknown = [field for field in only if field not in known]
        if unknown:
            raise RecipeError(
                f"--only names {', '.join(shown(field) for field in unknown)}, which has no range. Known ranges: "
                f"{', '.join(known)}. Give another field its range in the recipe's section sweep.space."
            )
        space = {field: known[field] for field in dict.fromkeys(only)}
    problems = list(_problems(recipe, space))
    if settings.sampler == "grid":
        problems += [
            f"{field}: a grid needs step, or choices, for a field that is no whole number."
            for field, given in space.items()
            if given.choices is None and given.step is None and not _whole(recipe, field, given)
        ]
    if problems:
        count = f"{len(problems)} mistake{'s' * (len(problems) > 1)}"
        raise RecipeError(f"sweep.space: {count}\n  " + "\n  ".join(problems))
    return settings.model_copy(update={"space": space, "objective": settings.objective or recipe.metric})


def _problems(recipe: Recipe, space: Mapping[str, Range]) -> Iterator[str]:
    for field, given in space.items():
        section, _, name = field.partition(".")
        unsearched = section == "data" and name not in _SEARCHED_DATA
        if field in _FIXED or section in _FIXED_SECTIONS or unsearched:
            yield f"{shown(field, quoted=False)}: all trials share it; it cannot be searched."
            continue
        for value in given.choices or [given.low, given.high]:
            try:
                load_recipe(recipe, {field: value})
            except RecipeError as error:
                yield " ".join(str(error).partition("\n")[2].split()) or str(error)
                break


def _whole(recipe: Recipe, field: str, given: Range) -> bool:
    """Whether a field takes whole numbers only."""
    return type(flatten(load_recipe(recipe, {field: given.low}).to_dict())[field]) is int


def distributions(recipe: Recipe, settings: Sweep) -> dict[str, Any]:
    """The space as Optuna's distributions; a choice that is a list stands as its JSON."""
    found = load_optuna().distributions
    made: dict[str, Any] = {}
    for field, given in (settings.space or {}).items():
        if given.choices is not None:
            made[field] = found.CategoricalDistribution([coded(choice) for choice in given.choices])
            continue
        assert given.low is not None and given.high is not None
        if _whole(recipe, field, given):
            step = 1 if given.step is None else max(1, round(given.step))
            made[field] = found.IntDistribution(int(given.low), int(given.high), log=given.log, step=step)
        else:
            made[field] = found.FloatDistribution(given.low, given.high, log=given.log, step=given.step)
    return made


def next_setting(recipe: Recipe, settings: Sweep, study: Any) -> Params | None:
    """A setting that no trial of the study has tried, as Optuna's files hold it; None where there is none left.

    The first is the recipe's own, where it lies in the space: what is found is then never worse by its own measure.
    """
    optuna = load_optuna()
    known = distributions(recipe, settings)
    trials = study.get_trials(deepcopy=False)
    tried = {_key(trial.params) for trial in trials}
    own = {field: coded(value) for field, value in flatten(recipe.to_dict()).items() if field in known}
    inside = all(
        field in own and own[field] is not None and _contains(distribution, own[field])
        for field, distribution in known.items()
        if not _choices(distribution)
    ) and all(own.get(field) in known[field].choices for field in known if _choices(known[field]))
    if inside and _key(own) not in tried:
        return {field: own[field] for field in known}
    seed = settings.random_state + len(trials)
    if settings.sampler == "grid":
        left = [setting for setting in _grid(known) if _key(setting) not in tried]
        return random.Random(seed).choice(left) if left else None
    for attempt in range(20):
        if settings.sampler == "random":
            sampler = optuna.samplers.RandomSampler(seed=seed + 1_000_003 * attempt)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed + 1_000_003 * attempt)
        # the study is copied, so that a setting that was tried already leaves no trial behind
        copy = optuna.create_study(direction=study.direction, sampler=sampler)
        copy.add_trials(trials)
        found = copy.ask(known).params
        if _key(found) not in tried:
            return dict(found)
    finite = all(_values(distribution) is not None for distribution in known.values())
    left = [setting for setting in _grid(known) if _key(setting) not in tried] if finite else []
    return random.Random(seed).choice(left) if left else None


def _key(params: Mapping[str, Any]) -> str:
    return json.dumps(params, sort_keys=True)


def _choices(distribution: Any) -> bool:
    return hasattr(distribution, "choices")


def _contains(distribution: Any, value: Any) -> bool:
    return isinstance(value, (int, float)) and distribution.low <= value <= distribution.high


def _values(distribution: Any) -> list[Any] | None:
    """All values of a distribution; None of one that has any value between two."""
    if _choices(distribution):
        return list(distribution.choices)
    if distribution.step is None:
        return None
    n = math.floor((distribution.high - distribution.low) / distribution.step + 1e-9) + 1
    return [distribution.low + i * distribution.step for i in range(n)] if n <= _MANY else None


def _grid(known: Mapping[str, Any]) -> Iterator[Params]:
    values = [_values(distribution) or [] for distribution in known.values()]
    if math.prod(map(len, values)) > _MANY:
        raise RecipeError(
            f"The grid has more than {_MANY:,} settings. Leave out fields, take fewer choices or greater steps, or "
            "another sweep.sampler."
        )
    return (dict(zip(known, setting, strict=True)) for setting in itertools.product(*values))
