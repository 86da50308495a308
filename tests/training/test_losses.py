"""Positive weights by hand, the loss against PyTorch's own, and gradient accumulation that changes nothing."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lora_cls.errors import RecipeError
from lora_cls.evaluation import task_of
from lora_cls.evaluation.probabilities import corrected_probabilities
from lora_cls.modeling.adapter import build_model, reset_model
from lora_cls.modeling.loading import load_base
from lora_cls.recipe import Loss, load_recipe
from lora_cls.text.tokens import Tokens
from lora_cls.training.loop import make_accelerator, train_fold
from lora_cls.training.losses import LOSSES, LabelFacts, pos_weight, teachers_loss, training_loss, validation_loss
from lora_cls.training.objective import ClassificationObjective
from lora_cls.training.progress import Progress

CPU = torch.device("cpu")
# 10 rows: 5, 2, 1, 0 and 10 positives
LABELS = np.array([[i < 5, i < 2, i == 9, False, True] for i in range(10)], dtype=np.int8)


def test_balanced_is_negatives_over_positives_of_each_label():
    """Each label by itself, never across labels; without positives 1, without negatives a small positive number."""
    weights = pos_weight(LABELS, Loss(pos_weight="balanced"))
    assert weights.tolist() == [1.0, 4.0, 9.0, 1.0, 0.01]
    assert weights.dtype == np.float64


def test_balanced_gives_both_sides_of_a_label_the_same_weight():
    """At logit 0 the weighted loss of a label's positives equals that of its negatives."""
    weights = torch.as_tensor(pos_weight(LABELS[:, :3], Loss()))
    zero, labels = torch.zeros(3, dtype=torch.float64), torch.as_tensor(LABELS[:, :3], dtype=torch.float64)
    loss = F.binary_cross_entropy_with_logits(zero.expand(10, 3), labels, pos_weight=weights, reduction="none")
    torch.testing.assert_close((loss * labels).sum(0), (loss * (1 - labels)).sum(0))


def test_other_ways():
    """The square root, none, a list as it stands, and the cap for computed weights."""
    assert pos_weight(LABELS, Loss(pos_weight="sqrt")).tolist() == [1.0, 2.0, 3.0, 1.0, 0.01]
    assert pos_weight(LABELS, Loss(pos_weight="none")).tolist() == [1.0] * 5
    assert pos_weight(LABELS, Loss(pos_weight=[1, 2, 3, 4, 500], max_pos_weight=10)).tolist() == [1, 2, 3, 4, 500]
    assert pos_weight(LABELS, Loss(max_pos_weight=5)).tolist() == [1.0, 4.0, 5.0, 1.0, 0.2]
    rare = np.zeros((100_001, 1), dtype=np.int8)
    rare[0] = 1
    assert pos_weight(rare, Loss()).tolist() == [100.0]


def test_many_rows_do_not_overflow():
    """Labels are int8: more than 127 positives are still counted."""
    labels = np.ones((1000, 1), dtype=np.int8)
    labels[:200] = 0
    assert pos_weight(labels, Loss()).tolist() == [0.25]


@pytest.mark.parametrize("given", [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [], [1, 1, 0, 1, 1], [1, 1, -2, 1, 1]])
def test_wrong_lists(given):
    """A list of another length, or with numbers that are no weights, is named with what was given."""
    with pytest.raises(RecipeError, match=r"loss\.pos_weight must hold 5 numbers above 0.*Got \["):
        pos_weight(LABELS, Loss(pos_weight=given))


def test_a_weight_that_is_no_number():
    """NaN or infinity in a list would make every loss NaN: refused before training."""
    for value in (float("nan"), float("inf")):
        with pytest.raises(RecipeError, match=r"loss\.pos_weight"):
            pos_weight(LABELS, load_recipe({"tfidf": {}, "loss": {"pos_weight": [1, 1, value, 1, 1]}}).loss)


def test_loss_is_pytorchs():
    """Divided by the rows, the loss is the mean of PyTorch's; in batches it adds up to the same."""
    torch.manual_seed(0)
    logits, targets, weight = torch.randn(7, 3), torch.randint(0, 2, (7, 3)).float(), torch.tensor([1.0, 4.0, 0.5])
    expected = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight)
    torch.testing.assert_close(training_loss(logits, targets, weight, Loss()) / 7, expected)
    parts = sum(training_loss(logits[rows], targets[rows], weight, Loss()) for rows in (slice(5), slice(5, 7)))
    torch.testing.assert_close(parts / 7, expected)


P = 0.8  # sigmoid of log 4
LOGIT = math.log(4)


@pytest.mark.parametrize(
    ("loss", "positive", "negative"),
    [
        ({"name": "bce"}, -3 * math.log(P), -math.log(0.2)),
        ({"name": "focal"}, -3 * 0.2**2 * math.log(P), -(0.8**2) * math.log(0.2)),
        ({"name": "focal", "focal_gamma": 0}, -3 * math.log(P), -math.log(0.2)),
        ({"name": "asymmetric"}, -3 * math.log(P), -(0.75**4) * math.log(0.25)),
        ({"name": "asymmetric", "gamma_positive": 1, "gamma_negative": 2, "probability_margin": 0.3},
         -3 * 0.2 * math.log(P), -(0.5**2) * math.log(0.5)),
        ({"name": "asymmetric", "probability_margin": 0.9}, -3 * math.log(P), 0.0),
        ({"label_smoothing": 0.2}, -3 * 0.9 * math.log(P) - 0.1 * math.log(0.2),
         -3 * 0.1 * math.log(P) - 0.9 * math.log(0.2)),
    ],
)  # fmt: skip
def test_losses_by_hand(loss, positive, negative):
    """Focal, asymmetric and smoothed losses of a positive and a negative at p = 0.8 and weight 3, by hand."""
    weight, settings = torch.tensor([3.0]), Loss(**loss)
    for target, expected in ((1.0, positive), (0.0, negative)):
        found = training_loss(torch.tensor([[LOGIT]]), torch.tensor([[target]]), weight, settings)
        assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits(name):
    """A model that is very sure, right or wrong, gives finite losses and gradients."""
    logits = torch.tensor([[60.0, -60.0], [60.0, -60.0]], requires_grad=True)
    loss = training_loss(
        logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.ones(2), Loss(name=name, pos_weight="none")
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def literal_distribution_balanced(logits, labels, counts, n_train, loss):
    """Wu et al. 2020's sums, term by term as they are printed, with the focal factor of Huang et al. 2021; a row that
    no label draws weighs alpha + 1."""
    n_labels = len(counts)
    total = 0.0
    for z_row, y_row in zip(logits.tolist(), labels.tolist(), strict=True):
        drawn_by_any = sum(1 / (n_labels * n) for n, y in zip(counts, y_row, strict=True) if y)
        for z, y, n in zip(z_row, y_row, counts, strict=True):
            smoothed = 1.0
            if drawn_by_any:
                ratio = 1 / (n_labels * n) / drawn_by_any
                smoothed = 1 / (1 + math.exp(-loss.db_beta * (ratio - loss.db_mu)))
            r_hat = loss.db_alpha + smoothed
            b_hat = -math.log(n_train / n - 1)
            nu = -loss.db_kappa * b_hat
            scale = loss.db_lambda
            if y:
                p_truth = 1 / (1 + math.exp(-(z - nu)))
                term = math.log(1 + math.exp(-(z - nu)))
            else:
                p_truth = 1 - 1 / (1 + math.exp(-scale * (z - nu)))
                term = math.log(1 + math.exp(scale * (z - nu))) / scale
            total += r_hat * (1 - p_truth) ** loss.focal_gamma * term / n_labels
    return total


DB_SETTINGS = [
    {},
    {"focal_gamma": 0},
    {"db_alpha": 0.3, "db_beta": 4, "db_mu": 0.3, "db_lambda": 5, "db_kappa": 0.2, "focal_gamma": 1},
]


@pytest.mark.parametrize("settings", DB_SETTINGS)
def test_distribution_balanced_is_the_papers(settings):
    """Against a literal reimplementation, rows with no label included, in training and on held-out rows; summed over
    batches; the papers' defaults for text."""
    loss = Loss(name="distribution_balanced", pos_weight="none", **settings)
    if not settings:
        assert (loss.db_alpha, loss.db_beta, loss.db_mu, loss.db_lambda, loss.db_kappa) == (0.1, 10, 0.9, 2, 0.05)
    rng = np.random.default_rng(0)
    labels = (rng.random((40, 4)) < [0.6, 0.3, 0.1, 0.05]).astype(np.int8)
    labels[0], labels[1] = 1, 0
    logits = rng.normal(0, 2, size=labels.shape)
    expected = literal_distribution_balanced(logits, labels, labels.sum(0).tolist(), 40, loss)
    facts = LabelFacts.of(labels, None, loss, "abcd")
    tensors = torch.as_tensor(logits), torch.as_tensor(labels, dtype=torch.float64)
    ones = torch.ones(4, dtype=torch.float64)
    found = [training_loss(*(t[rows] for t in tensors), ones, loss, facts=facts) for rows in (slice(9), slice(9, 40))]
    assert float(sum(found)) == pytest.approx(expected, rel=1e-9)
    assert validation_loss(logits, labels, np.ones(4), loss, None, facts) == pytest.approx(expected / 40, rel=1e-9)


def test_weight_that_distribution_balanced_hides():
    """What the loss is least at, of logits that are one number per label, corrects to the labels' shares (lambda 1,
    gamma 0); a label that no row or every row has stays finite, and row weights count as copies."""
    loss = Loss(name="distribution_balanced", pos_weight="none", db_lambda=1, focal_gamma=0, db_kappa=0.3)
    rng = np.random.default_rng(1)
    labels = (rng.random((200, 3)) < [0.5, 0.2, 0.05]).astype(np.int8)
    facts, weight = LabelFacts.of(labels, None, loss, "abc"), pos_weight(labels, loss)
    level = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    targets, ones = torch.as_tensor(labels, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([level], max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        value = training_loss(level.expand(200, 3), targets, ones, loss, facts=facts)
        value.backward()
        return value

    optimizer.step(closure)
    np.testing.assert_allclose(corrected_probabilities(level.detach(), weight), labels.mean(0), rtol=1e-5)
    assert not np.allclose(weight, 1, atol=0.05)
    extreme = pos_weight(LABELS, loss)
    assert np.isfinite(extreme).all() and (extreme > 0).all()
    copies = np.array([2, 0, 1] * 66 + [1, 1])
    np.testing.assert_allclose(pos_weight(labels, loss, copies * 3.0), pos_weight(np.repeat(labels, copies, 0), loss))


def test_label_weights():
    """The whole term of a label counts so many times, positives and negatives alike, and labels not named once."""
    torch.manual_seed(0)
    logits, targets, weight = torch.randn(7, 3), torch.randint(0, 2, (7, 3)).float(), torch.tensor([1.0, 4.0, 0.5])
    for name in ("bce", "focal", "asymmetric"):
        plain, loss = Loss(name=name), Loss(name=name, label_weights={"joy": 3, "fear": 0.5})
        facts = LabelFacts.of(targets.numpy(), None, loss, ["anger", "joy", "fear"])
        terms = LOSSES[name].of_labels(logits, targets, weight, plain, torch.ones(3))
        expected = (terms * torch.tensor([1.0, 3.0, 0.5])).sum() / 3
        torch.testing.assert_close(training_loss(logits, targets, weight, loss, facts=facts), expected)


def test_effective_number():
    """With beta near 1 the ratio of real counts, with beta near 0 no weight at all; never below it for a rare label."""
    labels = np.zeros((1000, 2), dtype=np.int8)
    labels[:10, 0] = 1
    beta = 0.99
    expected = (1 - beta**990) / (1 - beta**10)
    found = pos_weight(labels, Loss(pos_weight="effective_number", effective_number_beta=beta))
    assert found == pytest.approx([expected, 1.0])
    near_one = pos_weight(labels, Loss(pos_weight="effective_number", effective_number_beta=1 - 1e-9))
    assert near_one[0] == pytest.approx(99, rel=1e-3)
    assert pos_weight(labels, Loss(pos_weight="effective_number", effective_number_beta=1e-6))[0] == pytest.approx(1)


# 10 rows of 4 classes: 6, 3, 1 and 0 rows
ONE_CLASS = np.eye(4, dtype=np.int8)[[0] * 6 + [1] * 3 + [2]]


def test_class_weights_by_hand():
    """scikit-learn's balanced weights over the classes that occur, their root, inverse effective numbers, a list."""
    from sklearn.utils.class_weight import compute_class_weight

    y = ONE_CLASS.argmax(axis=1)
    found = pos_weight(ONE_CLASS, Loss(), task="single_label")
    assert found == pytest.approx([10 / 18, 10 / 9, 10 / 3, 1])
    assert found[:3] == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=y))
    assert found[y].mean() == pytest.approx(1)
    root = pos_weight(ONE_CLASS, Loss(pos_weight="sqrt"), task="single_label")
    assert root == pytest.approx(np.sqrt([10 / 18, 10 / 9, 10 / 3, 1]))
    raw = np.array([0.5 / (1 - 0.5**n) for n in (6, 3, 1)])
    effective = pos_weight(
        ONE_CLASS, Loss(pos_weight="effective_number", effective_number_beta=0.5), task="single_label"
    )
    assert effective == pytest.approx([*(raw * 3 / raw.sum()), 1])
    assert pos_weight(ONE_CLASS, Loss(pos_weight="none"), task="single_label").tolist() == [1] * 4
    assert pos_weight(ONE_CLASS, Loss(pos_weight=[1, 2, 3, 4]), task="single_label").tolist() == [1, 2, 3, 4]
    capped = pos_weight(ONE_CLASS, Loss(max_pos_weight=1.5), task="single_label")
    assert capped == pytest.approx([1 / 1.5, 10 / 9, 1.5, 1])


@pytest.mark.parametrize("kind", ["balanced", "sqrt", "effective_number"])
def test_class_weights_of_weighted_rows(kind):
    """A row of weight 2 counts as two rows; rows of a class that all weigh 0 do not occur."""
    copies = [2, 1, 1, 1, 1, 0, 3, 1, 2, 0, 0, 0]  # 12 in all: a mean of 1, to which weights are scaled
    labels, loss = np.vstack([ONE_CLASS, ONE_CLASS[:2]]), Loss(pos_weight=kind, effective_number_beta=0.9)
    repeated = pos_weight(np.repeat(labels, copies, axis=0), loss, task="single_label")
    found = pos_weight(labels, loss, 5.0 * np.array(copies), "single_label")
    assert found == pytest.approx(repeated)
    assert found[2:].tolist() == [1, 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_loss_is_pytorchs(smoothing):
    """Cross-entropy with weights and smoothing is PyTorch's summed one; in batches it adds up to the same."""
    torch.manual_seed(0)
    logits, y, weight = torch.randn(7, 3), torch.tensor([0, 2, 1, 1, 0, 2, 2]), torch.tensor([1.0, 4.0, 0.5])
    targets, loss = F.one_hot(y, 3).float(), Loss(label_smoothing=smoothing)
    expected = F.cross_entropy(logits, y, weight, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(training_loss(logits, targets, weight, loss, task="single_label"), expected)
    parts = [training_loss(logits[i], targets[i], weight, loss, task="single_label") for i in (slice(5), slice(5, 7))]
    torch.testing.assert_close(sum(parts), expected)


def test_class_losses_by_hand():
    """At probabilities 0.5, 0.3, 0.2: cross-entropy, focal, smoothed, shares of classes and row weights."""
    p, weight = [0.5, 0.3, 0.2], torch.tensor([1.0, 2.0, 4.0])
    logits = torch.tensor([p]).log()

    def value(targets, row_weight=None, **loss):
        rows = torch.tensor([targets])
        return float(training_loss(logits, rows, weight, Loss(**loss), row_weight, "single_label"))

    nll = [-math.log(v) for v in p]
    assert value([0.0, 1.0, 0.0]) == pytest.approx(2 * nll[1])
    assert value([0.0, 1.0, 0.0], torch.tensor([0.25])) == pytest.approx(0.5 * nll[1])
    assert value([0.0, 0.0, 1.0], name="focal", focal_gamma=2) == pytest.approx(4 * 0.8**2 * nll[2])
    assert value([0.0, 0.0, 1.0], name="focal", focal_gamma=0) == pytest.approx(4 * nll[2])
    assert value([0.75, 0.25, 0.0]) == pytest.approx(0.75 * nll[0] + 0.25 * 2 * nll[1])
    smoothed = 0.8 * nll[0] + 0.2 / 3 * (nll[0] + 2 * nll[1] + 4 * nll[2])
    assert value([1.0, 0.0, 0.0], label_smoothing=0.2) == pytest.approx(smoothed)


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_extreme_class_logits(name):
    """A model that is very sure, right or wrong, gives finite losses and gradients."""
    logits = torch.tensor([[200.0, -200.0], [200.0, -200.0]], requires_grad=True)
    loss = training_loss(logits, torch.eye(2), torch.ones(2), Loss(name=name), task="single_label")
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_row_weights_and_soft_labels_by_hand():
    """Two rows at p = 0.8, of weights 2 and 0.5; a soft label is its share of the positive and of the negative term."""
    logits, targets = torch.full((2, 2), LOGIT), torch.tensor([[1.0, 0.0], [0.25, 0.25]])
    positive, negative = -3 * math.log(P), -math.log(1 - P)
    expected = 2 * (positive + negative) / 2 + 0.5 * (0.25 * positive + 0.75 * negative)
    found = training_loss(logits, targets, torch.tensor([3.0, 3.0]), Loss(), torch.tensor([2.0, 0.5]))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_validation_loss():
    """The mean over rows of the recipe's loss with its positive weights, and the truth unsmoothed."""
    logits, targets = np.full((4, 1), LOGIT), np.array([[1], [0], [0], [0]], dtype=np.int8)
    expected = (-3 * math.log(P) - 3 * math.log(1 - P)) / 4
    for smoothing in (0.0, 0.3):
        found = validation_loss(logits, targets, np.array([3.0]), Loss(label_smoothing=smoothing))
        assert found == pytest.approx(expected, rel=1e-9)
    p, one_hot, weight = np.array([[0.5, 0.3, 0.2]]), np.array([[0, 1, 0]]), np.array([1.0, 2.0, 4.0])
    classes = validation_loss(np.log(p), one_hot, weight, Loss(label_smoothing=0.3), "single_label")
    assert classes == pytest.approx(-2 * math.log(0.3))
    focal = validation_loss(logits, targets, np.array([3.0]), Loss(name="focal"))
    assert focal == pytest.approx((-3 * 0.04 * math.log(P) - 3 * 0.64 * math.log(1 - P)) / 4, rel=1e-9)


def test_positive_weights_of_weighted_rows():
    """A row of weight 2 counts as two rows, whatever the scale of the weights; soft labels count by their shares."""
    labels = np.array([[1], [0], [0], [1]], dtype=np.int8)
    row_weight = np.array([2.0, 1.0, 1.0, 0.0])
    assert pos_weight(labels, Loss(), row_weight).tolist() == [1.0]
    assert pos_weight(labels, Loss(), 10 * row_weight) == pytest.approx([1.0])
    assert pos_weight(labels, Loss(), np.array([1.0, 2.0, 3.0, 1.0])) == pytest.approx([2.5])
    assert pos_weight(np.array([[0.5], [0.25], [0.0], [0.25]]), Loss()) == pytest.approx([3.0])
    assert pos_weight(np.array([[0.1], [0.0]]), Loss()) == pytest.approx([19.0])
    assert pos_weight(labels, Loss(), np.array([0.0, 1.0, 1.0, 0.0])).tolist() == [1.0], "its positives weigh nothing"
    assert pos_weight(labels, Loss(), np.array([1.0, 0.0, 0.0, 1.0])) == pytest.approx([0.01])
    effective = pos_weight(labels, Loss(pos_weight="effective_number", effective_number_beta=0.9), row_weight * 5)
    assert effective == pytest.approx([1.0])


class Recorder:
    """An accelerator that notes the gradients of every step."""

    def __init__(self, accelerator):
        self.accelerator, self.steps = accelerator, []

    def __getattr__(self, name):
        return getattr(self.accelerator, name)

    def clip_grad_norm_(self, parameters, max_norm):
        parameters = list(parameters)
        self.steps.append([parameter.grad.clone() for parameter in parameters])
        return self.accelerator.clip_grad_norm_(parameters, max_norm)


@pytest.mark.parametrize(("n_rows", "task"), [(16, "multi_label"), (13, "multi_label"), (13, "single_label")])
def test_accumulation_equals_a_large_batch(n_rows, task, tiny_recipe, tmp_path):
    """Two batches of 8 give the gradients of one of 16, also where the last batch is short."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 300, size=n) for n in rng.integers(3, 30, n_rows)]
    tokens = Tokens(ids, np.arange(n_rows), np.zeros(n_rows, dtype=bool))
    labels = rng.integers(0, 2, (n_rows, 3)) if task == "multi_label" else np.eye(3)[rng.integers(3, size=n_rows)]
    gradients = []
    for batch_size, accumulate in ((8, 2), (16, 1)):
        recipe = tiny_recipe(
            "llama",
            task=task,
            train__per_device_train_batch_size=batch_size,
            train__gradient_accumulation_steps=accumulate,
            train__num_train_epochs=1,
        )
        model = build_model(load_base(recipe.backbone, None, torch.float32, CPU), recipe, 3)
        reset_model(model, recipe, 0)
        recorder = Recorder(make_accelerator(torch.float32, CPU))
        name = f"{batch_size}"
        objective = ClassificationObjective(tokens, labels, np.array([1.0, 3.0, 0.5]), recipe, 0)
        train_fold(
            model, recipe, objective, fold=0, accelerator=recorder,
            state_file=tmp_path / f"{name}.safetensors", metrics_file=tmp_path / f"{name}.jsonl",
            progress=Progress(0, show=False),
        )  # fmt: skip
        assert len(recorder.steps) == 1
        gradients.append(recorder.steps[0])
    small, large = gradients
    assert sum(float(gradient.norm()) for gradient in large) > 0
    for found, expected in zip(small, large, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_names_are_those_of_the_recipe():
    """A recipe takes the losses of the table; those without a form for classes it refuses for them."""
    assert tuple(LOSSES) == get_args(Loss.model_fields["name"].annotation)
    for name, form in LOSSES.items():
        values = {"tfidf": {}, "task": "single_label", "loss": {"name": name}}
        if form.of_classes is None:
            with pytest.raises(RecipeError, match=rf"loss\.name: {name}"):
                load_recipe(values)
        else:
            assert load_recipe(values).loss.name == name


@pytest.mark.parametrize("task", ["multi_label", "single_label"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_teachers_loss_is_least_at_the_teachers_probabilities(task, temperature):
    """Whatever the positive weights and the temperature, the best logits are, corrected, what the teachers said; and
    the gradient is 0 there."""
    taught = torch.tensor([[-2.0, 0.3, 1.5], [0.7, -4.0, 2.0]], dtype=torch.float64)
    if task == "single_label":
        taught = taught.log_softmax(1)
    weight = torch.tensor([7.0, 0.4, 2.0], dtype=torch.float64)
    logits = (taught + weight.log()).requires_grad_()
    teachers_loss(logits, taught, weight, Loss(label_smoothing=0.1, name="focal"), temperature, task=task).backward()
    assert logits.grad.abs().max() < 1e-12
    found = task_of(task).link.probabilities(logits.detach(), weight)
    np.testing.assert_allclose(found, task_of(task).link.probabilities(taught, np.ones(3)), atol=1e-12)
    moved = (logits.detach() + torch.tensor([0.5, -0.5, 0.2])).requires_grad_()
    teachers_loss(moved, taught, weight, Loss(), temperature, task=task).backward()
    assert moved.grad.abs().max() > 1e-2


def test_teachers_loss_by_hand():
    """Temperature squared times weighted cross-entropy of the softened probabilities."""
    logits, taught, t = np.array([[1.0, -0.5]]), np.array([[2.0, 0.4]]), 2.0
    weight = np.array([4.0, 9.0])
    p, q = 1 / (1 + np.exp(-logits / t)), 1 / (1 + np.exp(-taught / t))
    expected = t**2 * (-np.sqrt(weight) * q * np.log(p) - (1 - q) * np.log(1 - p)).mean()
    found = teachers_loss(*map(torch.as_tensor, (logits, taught, weight)), Loss(), t)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_teachers_and_labels_together():
    """At temperature 1 and equal shares, the best student says, corrected, the mean of label and teachers."""
    weight = torch.tensor([5.0], dtype=torch.float64)
    taught, label = torch.tensor([[0.4]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64)
    mean = (1 + torch.sigmoid(taught)) / 2
    logits = (torch.logit(mean) + weight.log()).requires_grad_()
    loss = (training_loss(logits, label, weight, Loss()) + teachers_loss(logits, taught, weight, Loss(), 1.0)) / 2
    loss.backward()
    assert logits.grad.abs().max() < 1e-12
