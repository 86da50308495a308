"""Run folders with logits that a test chooses: nothing is trained."""

import numpy as np
import pandas as pd
import pytest

NAMES = ("anger", "joy")


@pytest.fixture
def make_run(tmp_path):
    """Factory `make_run(name, logits, y_true, fold, **more)`: a finished run folder of the classical baseline.

    `logits` of shape (n, n_labels), `y_true` likewise, `fold` of shape (n,). `ids` and `test` (logits of shape
    (n_folds, n_test, n_labels)) may be given; `recipe` updates the recipe's values; `unfinished` names folds without an
    answer.
    """
    from lora_cls.commands.tune import tune
    from lora_cls.files import write_array, write_bytes, write_csv, write_json
    from lora_cls.recipe import load_recipe
    from lora_cls.runs import RunFolder

    def make(
        name, logits, y_true, fold, *, ids=None, test=None, test_ids=None, names=NAMES, recipe=None, unfinished=()
    ):
        import yaml

        path = tmp_path / name
        path.mkdir(parents=True)
        logits, y_true, fold = np.asarray(logits, np.float32), np.asarray(y_true), np.asarray(fold)
        ids = [f"r{i}" for i in range(len(fold))] if ids is None else list(ids)
        values = {"tfidf": {}, "task": "multi_label", "thresholds": {"min_positives": 1}} | (recipe or {})
        text = yaml.safe_dump(load_recipe(values).to_dict())
        write_json(path / "labels.json", {"task": values["task"], "labels": list(names), "column": None})
        write_csv(path / "folds.csv", pd.DataFrame({"id": ids, "fold": fold, "group": np.arange(len(ids))}))
        columns = {label: y_true[:, j] for j, label in enumerate(names)}
        write_csv(path / "train_labels.csv", pd.DataFrame({"id": ids} | columns))
        if test is not None:
            test = np.asarray(test, np.float32)
            test_ids = [f"t{i}" for i in range(test.shape[1])] if test_ids is None else list(test_ids)
            write_csv(path / "test_ids.csv", pd.DataFrame({"id": test_ids}))
        data = {"paths": {"train": "DataFrame"}, "test_id_column": "id", "id_column": "id", "text_columns": ["text"]}
        data |= {"label_columns": list(names), "train_rows": len(ids), "test_rows": None, "train_sha256": "0"}
        info = {
            "data": data,
            "choices": {},
            "started": "",
            "versions": {},
            "machine": {"processor": "", "platform": ""},
        }
        info |= {"seconds": {"train": 60.0, "predict": 3.0}, "peak_memory_bytes": 2**30}
        write_json(path / "run.json", info)
        write_bytes(path / "recipe.yaml", text.encode())
        run = RunFolder(path)
        for k, number in enumerate(run.fold_numbers):
            folder = run.fold(number)
            folder.path.mkdir()
            if number in unfinished:
                continue
            write_array(folder.oof_logits, logits[fold == number])
            if test is not None:
                write_array(folder.test_logits, test[k])
            fold_info = {"pos_weight": [1.0] * len(names), "train_rows": int((fold != number).sum())}
            fold_info |= {"seconds": {"train": 30.0, "predict": 1.5}, "trainable_parameters": 7}
            write_json(folder.info_file, fold_info)
        tune(run)
        return run

    return make


@pytest.fixture
def problem():
    """Factory `problem(n, seed)`: labels (n, 2), folds, and a function of noisy logits; more noise, worse runs."""

    def make(n=240, seed=0, n_folds=3):
        rng = np.random.default_rng(seed)
        y_true = (rng.random((n, 2)) < (0.3, 0.5)).astype(int)
        fold = np.arange(n) % n_folds
        signs = 2 * y_true - 1
        return y_true, fold, lambda noise, strength=1.0: strength * signs + rng.normal(scale=noise, size=signs.shape)

    return make
