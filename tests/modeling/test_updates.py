"""The mean of adapters: the same function as the mean of the folds' updates, module by module."""

import json

import numpy as np
import pytest
import torch

from lora_cls.errors import RunError
from lora_cls.modeling.adapter import load_model_weights, save_model
from lora_cls.modeling.updates import Update, check_plain, mean_adapter
from lora_cls.recipe import Lora, load_recipe

PATTERNS = {"r": 4, "lora_alpha": 8, "use_rslora": True, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"v_proj": 3}}
KINDS = {
    "bert": {},
    "gpt2": {},  # Conv1D: weights the other way round
    "squeezebert/squeezebert-uncased": {"head__pooling": "mean", "backbone__attn_implementation": "eager"},  # grouped
    "llama": {"lora": PATTERNS},
}


@pytest.fixture(scope="module")
def folds(tiny_recipe, build, perturb, tmp_path_factory):
    """Factory of (recipe, folders of three adapters with noise in them)."""
    made = {}

    def make(kind):
        if kind not in made:
            recipe = tiny_recipe(kind, **KINDS[kind])
            folders = [tmp_path_factory.mktemp(kind.rpartition("/")[2]) / "adapter" for _ in range(3)]
            model = build(recipe)
            for seed, folder in enumerate(folders):
                save_model(perturb(model, seed), folder)
            made[kind] = recipe, folders
        return made[kind]

    return make


def opened(build, recipe, folder):
    """A model of the recipe, with the rank and scaling that the adapter's own configuration says."""
    config = json.loads((folder / "adapter_config.json").read_text())
    given = {name: config[name] for name in ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")}
    model = build(load_recipe(recipe, {"lora": recipe.lora.model_dump() | given}))
    load_model_weights(model, folder)
    return model


def effects(model):
    """What every adapted module adds to its output, for one random input each: computed by PEFT's own layers."""
    from peft.tuners.lora import LoraLayer

    found = {}
    for name, module in model.base.named_modules():
        if isinstance(module, LoraLayer):
            torch.manual_seed(0)
            a, b = module.lora_A["default"], module.lora_B["default"]
            x = torch.randn((5, a.in_channels, 7) if isinstance(a, torch.nn.Conv1d) else (5, a.in_features))
            with torch.no_grad():
                found[name] = (b(a(x)) * module.scaling["default"]).double()
    return found


def heads(model):
    return torch.cat([model.base.score.weight.flatten(), model.base.score.bias]).detach()


@pytest.mark.parametrize("kind", KINDS)
def test_exact_mean(folds, build, kind, tmp_path):
    """Every module of the exported adapter adds the mean of what the folds' adapters add; so does the head."""
    recipe, folders = folds(kind)
    exact, compression = mean_adapter(folders, tmp_path / "mean")
    models = [opened(build, recipe, folder) for folder in folders]
    mean, parts = opened(build, recipe, tmp_path / "mean"), [effects(model) for model in models]
    assert exact == 12
    assert compression is None
    assert len(parts[0]) >= 8
    for name, found in effects(mean).items():
        expected = sum(part[name] for part in parts) / 3
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * max(1.0, float(expected.abs().max())))
    torch.testing.assert_close(heads(mean), sum(heads(model) for model in models) / 3, rtol=0, atol=1e-6)


def test_mean_of_factors_is_another(folds, build, tmp_path):
    """The mean of the factors, which one might take for the mean of the updates, is far from it."""
    from safetensors.torch import load_file, save_file

    recipe, folders = folds("bert")
    states = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    (tmp_path / "factors").mkdir()
    (tmp_path / "factors" / "adapter_config.json").write_bytes((folders[0] / "adapter_config.json").read_bytes())
    averaged = {key: sum(state[key] for state in states) / 3 for key in states[0]}
    save_file(averaged, tmp_path / "factors" / "adapter_model.safetensors")
    mean_adapter(folders, tmp_path / "mean")
    right, wrong = (effects(opened(build, recipe, tmp_path / name)) for name in ("mean", "factors"))
    assert all((right[name] - wrong[name]).norm() > 0.1 * right[name].norm() for name in right)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_compressed_is_the_best_of_its_rank(folds, build, kind, tmp_path):
    """At a lower rank every update is the cut SVD of the dense mean, and the shares told are those of its spectrum."""
    recipe, folders = folds(kind)
    mean_adapter(folders, tmp_path / "mean")
    _, compression = mean_adapter(folders, tmp_path / "small", rank=5)
    dense = {name: delta(module) for name, module in lora_layers(opened(build, recipe, tmp_path / "mean"))}
    small = {name: delta(module) for name, module in lora_layers(opened(build, recipe, tmp_path / "small"))}
    kept, whole, shares = 0.0, 0.0, {}
    for name, matrix in dense.items():
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        torch.testing.assert_close(small[name], u[:, :5] * s[:5] @ vh[:5], rtol=0, atol=1e-5 * float(s[0]))
        shares[name] = float(s[:5].square().sum() / s.square().sum())
        kept, whole = kept + float(s[:5].square().sum()), whole + float(s.square().sum())
    assert compression.share == pytest.approx(kept / whole, abs=1e-6)
    assert compression.lowest_share == pytest.approx(min(shares.values()), abs=1e-6)
    assert compression.lowest_module == min(shares, key=shares.get)
    assert compression.lowest_share < compression.share < 1


def lora_layers(model):
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.base.named_modules() if isinstance(module, LoraLayer)]


def delta(module):
    return module.get_delta_weight("default").detach().double()


def test_share_takes_the_lowest_rank(folds, tmp_path):
    """--share keeps what is asked with no rank to spare; 1 keeps all of it."""
    _, folders = folds("bert")
    _, by_share = mean_adapter(folders, tmp_path / "share", share=0.8)
    _, one_less = mean_adapter(folders, tmp_path / "less", rank=by_share.rank - 1)
    assert one_less.share < 0.8 <= by_share.share
    exact, everything = mean_adapter(folders, tmp_path / "all", share=1.0)
    assert everything.rank == exact
    assert everything.share == pytest.approx(1)


def test_compressed_groups(folds, build, tmp_path):
    """Grouped convolutions are cut group by group: a full rank changes nothing, one that no group fits is refused."""
    recipe, folders = folds("squeezebert/squeezebert-uncased")
    mean_adapter(folders, tmp_path / "mean")
    _, compression = mean_adapter(folders, tmp_path / "whole", rank=12)
    assert compression.share == pytest.approx(1)
    mean, whole = (effects(opened(build, recipe, tmp_path / name)) for name in ("mean", "whole"))
    for name in mean:
        torch.testing.assert_close(whole[name], mean[name], rtol=0, atol=1e-5)
    assert mean_adapter(folders, tmp_path / "eight", rank=8)[1].share < 1
    with pytest.raises(RunError, match="a multiple of 4 from 4 to 12"):
        mean_adapter(folders, tmp_path / "six", rank=6)
    assert not (tmp_path / "six").exists()


def test_decomposed_of_more_ranks_than_features():
    """Ten folds of rank 16 on a layer of 20 features: no more than 20 ranks are left, and nothing is lost."""
    rng = np.random.default_rng(0)
    update = Update(torch.from_numpy(rng.normal(size=(1, 160, 20))), torch.from_numpy(rng.normal(size=(1, 30, 160))))
    ordered, singular = update.decomposed()
    assert singular.shape == (1, 20)
    torch.testing.assert_close(ordered.b @ ordered.a, update.b @ update.a)
    filled = ordered.at_rank(40)
    assert filled.rank == 40
    torch.testing.assert_close(filled.b @ filled.a, update.b @ update.a)


@pytest.mark.parametrize("field", [{"use_dora": True}, {"lora_bias": True}, {"bias": "all"}])
def test_what_is_no_product_of_two_matrices(field):
    """DoRA and trained biases are refused by name; what PEFT does anyway is not."""
    with pytest.raises(RunError, match=next(iter(field))):
        check_plain(Lora(r=4, **field))
    check_plain(Lora(**PATTERNS | {"use_dora": False, "bias": "none"}))


def test_adapters_that_do_not_fit(folds, tmp_path):
    """A fold with other modules or a file cut short is named."""
    import shutil

    _, folders = folds("bert")
    with pytest.raises(RunError, match="has other modules than"):
        mean_adapter([folders[0], folds("llama")[1][0]], tmp_path / "mean")
    copy = shutil.copytree(folders[1], tmp_path / "copy")
    file = copy / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(RunError, match="is damaged"):
        mean_adapter([folders[0], copy], tmp_path / "mean")
    file.unlink()
    with pytest.raises(RunError, match="is missing"):
        mean_adapter([folders[0], copy], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
