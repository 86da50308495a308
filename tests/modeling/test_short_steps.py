"""The short ways compute what a model's own modules compute, forward and backward."""

import numpy as np
import pytest
import torch
from torch import nn

from lora_cls.modeling.dropout import Dropout
from lora_cls.modeling.loading import load_base
from lora_cls.modeling.norms import Norm as ShortNorm
from lora_cls.modeling.read_places import ReadPlaces
from lora_cls.modeling.short_steps import shorten_steps
from lora_cls.text.tokens import pad
from lora_cls.training.heads import head_type

BF16 = {"backbone__dtype": "bfloat16"}
LAST, FIRST = {"head__pooling": "last_token"}, {"head__pooling": "cls"}
CASES = {
    "llama": ("llama", LAST, True),
    "llama, mean": ("llama", {"head__pooling": "mean"}, False),
    "llama, upper layers": ("llama", LAST | {"lora__top_layers": 0.5}, True),
    "gemma": ("gemma3", LAST, True),
    "gemma, bf16": ("gemma3", LAST | BF16, True),
    "llama, bf16": ("llama", LAST | BF16, True),
    "bert": ("bert", FIRST, True),
    "bert, all trained": ("bert", FIRST | {"lora": None}, True),
    "gpt2": ("gpt2", LAST, True),
    "gradient checkpointing": ("llama", LAST | {"train__gradient_checkpointing": True}, False),
    "bert, bf16, checkpointing": ("bert", FIRST | BF16 | {"train__gradient_checkpointing": True}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_computes_what_the_model_computes(case, tiny_recipe, build, perturb, random_rows, gradients, difference):
    """Logits and all gradients, at several lengths; the last layer is read at one token where that can be."""
    kind, overrides, reads_places = CASES[case]
    rows = random_rows([6, 14, 9])
    model = perturb(build(tiny_recipe(kind, **overrides)))
    expected = gradients(model, rows)
    assert shorten_steps(model) > 0
    assert (model.last_layer is not None) == reads_places
    assert difference(gradients(model, rows), expected) < (5e-2 if "bf16" in case else 1e-5)


def test_the_last_layer_computes_less(tiny_recipe, build, random_rows):
    """Its feed-forward half sees one token of each row, and every token where nothing is pooled."""
    model = build(tiny_recipe("llama", **LAST))
    shorten_steps(model)
    ids, mask = (torch.from_numpy(part) for part in pad(random_rows([6, 14, 9]), 0))
    seen = []
    model.last_layer.start.register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    model(ids, mask)
    model.last_hidden_state(ids, mask)
    assert seen == [1, ids.shape[1]]


def test_what_changes_when_read_at_one_token_keeps_all(tiny_recipe, build, monkeypatch):
    """A layer whose second half looks at other tokens, too, is told by the trial."""
    model = build(tiny_recipe("llama", **LAST))
    own = ReadPlaces.__call__
    monkeypatch.setattr(
        ReadPlaces, "__call__", lambda self, hidden: own(self, hidden) * (1 + (self.places is not None))
    )
    shorten_steps(model)
    assert model.last_layer is None
    assert not any(isinstance(getattr(module, "forward", None), ReadPlaces) for module in model.modules())


class Norm(nn.Module):
    """A norm whose name says RMSNorm, and which subtracts the mean all the same."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8), requires_grad=False), 1e-6

    def forward(self, x):
        return nn.functional.layer_norm(x, (8,), self.weight)


class OtherRMSNorm(Norm):
    """See `Norm`."""


class Model(nn.Module):
    """A model with a base of the given modules."""

    def __init__(self, *modules):
        super().__init__()
        self.base = nn.Sequential(*modules)


def test_a_norm_of_another_kind_keeps_its_own():
    model = Model(OtherRMSNorm(), nn.Linear(8, 8))
    assert shorten_steps(model) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_norm_gets_its_gradient(dtype):
    norm = nn.RMSNorm(8, eps=1e-6, dtype=dtype)
    model = Model(norm)
    assert shorten_steps(model) == 1
    assert isinstance(norm.forward, ShortNorm)
    norm(torch.randn(3, 8, dtype=dtype)).float().sum().backward()
    assert norm.weight.grad is not None


@pytest.mark.parametrize("p", [0.1, 0.5, 0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout(p, dtype):
    """The share that is left out, the scale of the rest, the gradient, and nothing at all in evaluation."""
    dropout = nn.Dropout(p)
    dropout.forward = Dropout(dropout)
    x = torch.ones(7, 1001, dtype=dtype, requires_grad=True)
    torch.manual_seed(3)
    found = dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), found)
    assert found.dtype == dtype
    assert float((found == 0).float().mean()) == pytest.approx(p, abs=0.02)
    kept = found[found != 0].float().detach()
    assert np.allclose(kept, 1 / (1 - p) if p < 1 else 0, rtol=1e-2)
    found.float().sum().backward()
    assert torch.equal(x.grad, found.detach())  # of ones
    assert torch.equal(dropout.eval()(x), x)


def test_masks_of_neighbours_are_unlike():
    """Bits of one draw are used four times over, each for another value."""
    dropout = nn.Dropout(0.5)
    kept = (Dropout(dropout)(torch.ones(4096, 4)) != 0).float()
    assert float((torch.corrcoef(kept.T) - torch.eye(4)).abs().max()) < 0.08


def names_together(model):
    """The layers that are computed together, by the ends of their names, in the order of the model."""
    names = {module: name for name, module in model.named_modules()}
    return [[names[forward.module].rpartition(".")[2] for forward in shared.forwards] for shared in model.shared_inputs]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]),
        ("bert", [["query", "key", "value"], ["dense"], ["dense"], ["dense"]]),
    ],
)
def test_layers_that_read_the_same_are_computed_together(kind, expected, tiny_recipe, build):
    model = build(tiny_recipe(kind))
    shorten_steps(model)
    found = names_together(model)
    assert found[:4] == expected
    assert found == expected * (len(found) // 4)


@pytest.mark.parametrize(("kind", "head"), [("chat", "generate"), ("llama", "label_names")])
def test_with_other_heads(kind, head, tiny_recipe):
    """A model that writes its labels has another output; one that reads label names needs them in every text."""
    recipe = tiny_recipe(kind) if head == "generate" else tiny_recipe(kind, head={"kind": head, "pooling": "mean"})
    written = head == "generate"
    base = load_base(recipe.backbone, None, torch.float32, torch.device("cpu"), with_output=written)
    model = head_type(head).build(base, recipe, 3)
    shorten_steps(model)
    assert names_together(model)[:2] == [["q_proj", "k_proj", "v_proj"], ["o_proj"]]


def test_a_pass_that_was_broken_off_is_forgotten(tiny_recipe, build, random_rows):
    """Between the layers of a group, by Ctrl-C or a full memory: nothing of it is kept, and the next pass is whole."""
    model = build(tiny_recipe("llama"))
    shorten_steps(model)
    shared = model.shared_inputs[0]
    model.train()
    shared.output(shared.forwards[0], torch.randn(2, 3, 64))
    assert shared._x is not None and len(shared._found) == 2
    model.eval()
    assert shared._x is None and not shared._found


def test_layers_with_the_same_weights_keep_their_way(tiny_recipe, build):
    """Two layers that share a weight, and one that is called twice: none of them may be put away or handed on."""
    model = build(tiny_recipe("llama"))
    first, second = (m for m in model.modules() if type(m).__name__ == "LlamaMLP")
    second.down_proj.base_layer.weight = first.down_proj.base_layer.weight
    second.up_proj = first.up_proj
    shorten_steps(model)
    together = [name for names in names_together(model) for name in names]
    assert together.count("down_proj") == together.count("up_proj") == 0
    assert together.count("gate_proj") == 2


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_weights_are_there_whenever_the_model_does_not_train(kind, tiny_recipe, build, perturb, random_rows, gradients):
    """In 16 bits weights are away in training, and the same again behind it; answers do not change."""
    model = perturb(build(tiny_recipe(kind, **BF16)))
    shorten_steps(model)
    rows = random_rows([6, 14, 9])

    def answers():
        model.eval()
        with torch.no_grad():
            return model(*(torch.from_numpy(part) for part in pad(rows, 0)))

    weights = [forward.module.base_layer.weight for shared in model.shared_inputs for forward in shared.forwards]
    before, values = answers(), [weight.clone() for weight in weights]
    model.train()
    gradients(model, rows)
    model.train()
    model(*(torch.from_numpy(part) for part in pad(rows, 0))).sum().backward()
    if model.shared_inputs[-1]._bases[0].packed is not None:
        assert sum(bool(weight.isnan().any()) for weight in weights) >= len(weights) - 3  # the lowest have no way back
    assert torch.equal(answers(), before)
    assert all(torch.equal(*pair) for pair in zip(weights, values, strict=True))
