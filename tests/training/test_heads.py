"""What a kind of head says of itself, in code and in the README's snippet."""

import subprocess
import sys
import textwrap
from typing import get_args

import numpy as np
import pytest
import torch

from lora_cls.modeling.classifier import attach_head, pool
from lora_cls.recipe import HeadKind, load_recipe
from lora_cls.report.templating import resource
from lora_cls.training.heads import head_type
from lora_cls.training.rows import TrainingRows
from lora_cls.training.transformer import TransformerLearner


@pytest.mark.parametrize("kind", get_args(HeadKind))
def test_every_kind_has_a_head(kind):
    """Every name that a recipe may give leads to a class in the file of that name, and to a template."""
    head = head_type(kind)
    assert head.__module__ == f"lora_cls.training.heads.{kind}"
    assert not head.__abstractmethods__
    assert resource(f"templates/{head.snippet_template}")


def test_a_card_needs_no_torch():
    """What a head says for a card, it says without torch: cards are written anew by `tune`."""
    code = """
        import sys
        from lora_cls.recipe import load_recipe
        from lora_cls.training.heads import head_type
        for kind in ("linear", "label_tokens", "label_names", "generate"):
            pooling = "mean" if kind == "label_names" else "last_token"
            given, head = {"kind": kind, "pooling": pooling}, head_type(kind)
            recipe = load_recipe({"backbone": {"name_or_path": "x"}, "head": given})
            head.around(recipe, ["a"], {"chat": {"before": "", "after": ""}})
            head.snippet_layer(1), head.snippet_logits(recipe)
            kind == "label_names" and head.snippet_names(recipe, ["a"])
        print([name for name in ("torch", "transformers", "peft") if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("pooling", ["last_token", "mean", "cls"])
@pytest.mark.parametrize("kind", ["linear", "label_tokens"])
def test_lines_of_the_snippet(kind, pooling, tiny_model):
    """They make the layer that `attach` makes, and the logits that the model gives."""
    from transformers import AutoModel

    recipe = load_recipe({"backbone": {"name_or_path": "x"}, "head": {"pooling": pooling}})
    head, base = head_type(kind), AutoModel.from_pretrained(tiny_model("bert"))
    attach_head(base, 3)
    state, ours = base.score.state_dict(), base.score
    names = {"torch": torch, "base": base, "model": base}
    exec(head.snippet_layer(3), names)
    assert base.score is not ours
    assert base.score.load_state_dict(state)
    exec(f"def logits(hidden, mask):\n{textwrap.indent(head.snippet_logits(recipe), '    ')}", names)
    hidden, mask = torch.randn(4, 7, 64), torch.tensor([[1] * n + [0] * (7 - n) for n in (7, 3, 1, 5)])
    torch.testing.assert_close(names["logits"](hidden, mask), ours(pool(hidden, mask, pooling)))


def test_a_session_holds_no_rows(tiny_recipe, emotion_table):
    """One learner takes in two tables, one base model is loaded, and each trainer has its own rows."""
    from lora_cls.data import load_train

    recipe = tiny_recipe("llama")
    learner = TransformerLearner(recipe, ["joy", "anger", "fear"])
    first, second = (learner.prepare(load_train(recipe.data, emotion_table(n, seed=n))) for n in (12, 18))
    assert [trainer.rows.tokens.n_texts for trainer in (first, second)] == [12, 18]
    assert first.session is second.session
    assert [len(trainer.begin_fold(0, np.arange(6))[1].lengths) for trainer in (first, second)] == [6, 6]


def test_rows_are_taken_together(tiny_recipe, emotion_table):
    """Tokens, labels, shares and weights of the rows asked for, in their order."""
    from lora_cls.data import load_train

    recipe = tiny_recipe("llama", data__weight_column="w", data__soft_labels=True)
    table = emotion_table(8).assign(w=np.arange(1.0, 9.0))
    table[["joy", "anger", "fear"]] = table[["joy", "anger", "fear"]] * 0.75
    data = load_train(recipe.data.model_copy(update={"label_columns": ["joy", "anger", "fear"]}), table)
    rows = TransformerLearner(recipe, data.label_names).prepare(data).rows
    taken = rows.take(np.array([5, 2]))
    assert isinstance(taken, TrainingRows)
    assert taken.row_weight.tolist() == [6.0, 3.0]
    assert taken.targets.tolist() == data.targets[[5, 2]].tolist()
    assert taken.labels.tolist() == data.labels[[5, 2]].tolist()
    for i, row in enumerate((5, 2)):
        assert taken.tokens.ids[i].tolist() == rows.tokens.ids[row].tolist()
