"""Learner for the classical floor: TF-IDF and logistic regression, through the same folds and files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_cls.data import Dataset
from lora_cls.errors import DataError, RunError
from lora_cls.evaluation import task_of
from lora_cls.files import make_folder, whole_folder, write_json
from lora_cls.recipe import Recipe, Tfidf
from lora_cls.runs import FoldFolder
from lora_cls.training.learner import FoldResult
from lora_cls.training.teachers import Teachers

PRIOR_LOGIT = 20.0  # for a label that is all 0 or all 1 in a fold: certain, yet finite


class TfidfLearner:
    """Word and character n-grams, and scikit-learn's logistic regression with balanced classes: one per label, or one
    of all classes for `single_label`.

    Parameters
    ----------
    recipe : with a `tfidf` section
    label_names : order of the outputs
    """

    def __init__(self, recipe: Recipe, label_names: Sequence[str]) -> None:
        assert recipe.tfidf is not None
        self.recipe, self.settings = recipe, recipe.tfidf
        self.n_labels = len(label_names)
        self.choices: dict[str, Any] = {"device": "cpu"}
        self.backbone_path: str | None = None
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}
        self.predict_seconds = 0.0
        self.reused: dict[str, int] = {}

    def prepare(self, train: Dataset, test: Dataset | None = None, teachers: Teachers | None = None) -> TfidfTrainer:
        """See `Learner.prepare`."""
        assert teachers is None  # the recipe refuses them
        return TfidfTrainer(self, train, test)

    def predict(self, folder: FoldFolder, texts: Sequence[str]) -> np.ndarray:
        """See `Predictor.predict`. Reads the saved files, so that what is scored is what was saved."""
        from scipy.sparse import hstack

        started = time.monotonic()
        vectorizers, coef, intercept = _load(folder.weights(folder.model), self.settings)
        if not len(texts):
            return np.zeros((0, self.n_labels), dtype=np.float32)
        features = hstack([vectorizer.transform(texts) for vectorizer in vectorizers]).tocsr()
        logits = np.asarray(features @ coef.T + intercept, dtype=np.float32)
        self.predict_seconds = time.monotonic() - started
        return logits


class TfidfTrainer:
    """Trains the baseline on one table.

    Rows weigh in the loss as for a transformer. A row with a soft label is two rows, a positive and a negative one,
    weighted by the shares: the cross-entropy is the same.
    """

    def __init__(self, learner: TfidfLearner, train: Dataset, test: Dataset | None) -> None:
        assert train.labels is not None
        self.learner, self.train, self.test = learner, train, test
        self.settings, self.n_labels = learner.settings, learner.n_labels
        self.targets = train.labels if train.targets is None else train.targets

    def adapt(self, extra_texts: Sequence[str]) -> None:
        """There is no base."""

    def measure(self) -> None:
        """See `FoldTrainer.measure`; nothing is to be loaded."""

    def fit_fold(
        self,
        fold: int,
        train_rows: np.ndarray,
        oof_rows: np.ndarray,
        folder: FoldFolder,
        n_epochs: int | None = None,
    ) -> FoldResult:
        """See `FoldTrainer.fit_fold`."""
        from scipy.sparse import hstack

        make_folder(folder.path)
        started = time.monotonic()
        texts = self.train.texts
        vectorizers = _vectorizers(self.settings)
        features = hstack([_fit(v, [texts[row] for row in train_rows]) for v in vectorizers]).tocsr()
        row_weight = None if self.train.row_weight is None else self.train.row_weight[train_rows]
        fit = self._fit_classes if task_of(self.learner.recipe.task).exclusive else self._fit_labels
        coef, intercept, weight = fit(features, self.targets[train_rows], row_weight)
        _save(folder.model, vectorizers, coef, intercept)
        train_seconds = time.monotonic() - started
        oof_logits = self.learner.predict(folder, [texts[row] for row in oof_rows])
        test_logits = self.learner.predict(folder, self.test.texts) if self.test else None
        seconds = {"train": round(train_seconds, 3), "predict": round(time.monotonic() - started - train_seconds, 3)}
        info = {
            "train_rows": len(train_rows),
            "predict_pieces": len(oof_rows) + (len(self.test) if self.test else 0),
            "seconds": seconds,
            "trainable_parameters": int(coef.size + intercept.size),
        }
        return FoldResult(oof_logits, test_logits, weight, info)

    def _fit_labels(
        self, features: Any, targets: np.ndarray, row_weight: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients (n_labels, n_features), intercepts and positive weights (n_labels,)."""
        from sklearn.linear_model import LogisticRegression

        of_row = np.ones(len(targets)) if row_weight is None else row_weight
        positives, negatives = of_row @ targets, of_row @ (1.0 - targets)
        odds = negatives / np.where(positives > 0, positives, 1)
        coef, intercept = np.zeros((self.n_labels, features.shape[1])), np.zeros(self.n_labels)
        for j in range(self.n_labels):
            if odds[j] == 0 or positives[j] == 0:
                intercept[j] = PRIOR_LOGIT if positives[j] else -PRIOR_LOGIT
                continue
            model = LogisticRegression(C=self.settings.C, class_weight=self.settings.class_weight, solver="liblinear")
            if self.train.targets is None and row_weight is None:
                model.fit(features, targets[:, j])
            else:
                model.set_params(class_weight=None)
                model.fit(*_weighted(features, targets[:, j], row_weight, self.settings.class_weight is not None))
            coef[j], intercept[j] = model.coef_[0], model.intercept_[0]
        if not self.settings.class_weight:
            return coef, intercept, np.ones(self.n_labels)
        # balanced classes shift the logit by log(negatives / positives), as a positive weight does
        return coef, intercept, np.where((positives > 0) & (odds > 0), odds, 1.0)

    def _fit_classes(
        self, features: Any, targets: np.ndarray, row_weight: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_fit_labels`, of one multinomial regression, with class weights."""
        from sklearn.linear_model import LogisticRegression

        of_row = np.ones(len(targets)) if row_weight is None else row_weight / row_weight.mean()
        coef, intercept = np.zeros((self.n_labels, features.shape[1])), np.full(self.n_labels, -PRIOR_LOGIT)
        counts = of_row @ targets
        present = np.flatnonzero(counts)
        weight = np.ones(self.n_labels)
        if self.settings.class_weight:  # scikit-learn's `balanced`, by weighted counts
            weight[present] = len(targets) / (len(present) * counts[present])
        if len(present) == 1:
            intercept[present] = PRIOR_LOGIT
        else:
            y, used = targets.argmax(axis=1), of_row > 0  # a class whose rows all weigh 0 is absent
            model = LogisticRegression(C=self.settings.C, max_iter=1000)
            model.fit(features[used], y[used], sample_weight=(of_row * weight[y])[used])
            # of two classes scikit-learn keeps one row, the log-odds of the second
            two = len(present) == 2
            coef[present] = np.vstack([np.zeros_like(model.coef_), model.coef_]) if two else model.coef_
            intercept[present] = [0.0, model.intercept_[0]] if two else model.intercept_
        # the weights shift the logit by the log of the class's weight
        return coef, intercept, weight


def _weighted(
    features: Any, targets: np.ndarray, row_weight: np.ndarray | None, balanced: bool
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Features, 0/1 labels and weights that say the same as soft labels and row weights; `balanced` as scikit-learn's,
    by weighted counts."""
    from scipy.sparse import vstack

    of_row = np.ones(len(targets)) if row_weight is None else row_weight
    weights = np.stack([of_row * targets, of_row * (1.0 - targets)])
    if balanced:
        weights = weights / weights.sum(axis=1, keepdims=True)
    weights = (weights * (len(targets) / weights.sum())).ravel()
    used = weights > 0
    truth = np.repeat([1, 0], len(targets))
    return vstack([features, features]).tocsr()[used], truth[used], weights[used]


def _vectorizers(settings: Tfidf) -> list[Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    common = {"min_df": settings.min_df, "sublinear_tf": settings.sublinear_tf, "lowercase": True}
    return [
        TfidfVectorizer(analyzer="word", ngram_range=settings.word_ngram_range, token_pattern=r"(?u)\b\w+\b", **common),
        TfidfVectorizer(analyzer="char_wb", ngram_range=settings.char_ngram_range, **common),
    ]


def _fit(vectorizer: Any, texts: list[str]) -> Any:
    """Features of the texts; where no term is frequent enough (scripts without spaces), every term counts."""
    try:
        return vectorizer.fit_transform(texts)
    except ValueError:
        try:
            return vectorizer.set_params(min_df=1).fit_transform(texts)
        except ValueError as error:
            raise DataError(f"tfidf: the training texts hold no {vectorizer.analyzer} n-grams: {error}") from None


def _save(folder: Path, vectorizers: list[Any], coef: np.ndarray, intercept: np.ndarray) -> None:
    """Plain files instead of a pickle: the vocabulary as JSON, numbers as safetensors."""
    from safetensors.numpy import save_file

    terms = [sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.get) for vectorizer in vectorizers]
    arrays = {"coef": coef, "intercept": intercept, "idf_word": vectorizers[0].idf_, "idf_char": vectorizers[1].idf_}
    with whole_folder(folder, replace=True) as scratch:
        write_json(scratch / "vocabulary.json", {"word": terms[0], "char": terms[1]})
        save_file(arrays, scratch / "weights.safetensors")


def _load(folder: Path, settings: Tfidf) -> tuple[list[Any], np.ndarray, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        terms = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "weights.safetensors")
        vectorizers = _vectorizers(settings)
        for vectorizer, name in zip(vectorizers, ("word", "char"), strict=True):
            vectorizer.vocabulary = {term: i for i, term in enumerate(terms[name])}
            vectorizer.idf_ = arrays[f"idf_{name}"]
        return vectorizers, arrays["coef"], arrays["intercept"]
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise RunError(f"{folder} is missing or damaged ({error}). Train the fold again.") from error
