"""The process that answers texts for another one: `python -m lora_cls.commands.predict_worker`; see `Answers`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from lora_cls.commands.answers import packed
from lora_cls.commands.predict import Classifier
from lora_cls.data import Dataset
from lora_cls.execution.child import Parent, work_for_parent


def answer_texts(job: Mapping[str, Any], parent: Parent) -> None:
    """Answer one list of texts after the other, as the parent sends them.

    Parameters
    ----------
    job : `run`, its folder, and `load`, further parameters of `Classifier.load` by name
    """
    classifier = Classifier.load(job["run"], **job["load"])
    for message in parent.messages():
        texts = message["texts"]  # read already
        rows = Dataset([""] * len(texts), texts, None, classifier.label_names, np.arange(len(texts)))
        logits = classifier.logits(rows, message["models"], partial(parent.tell, answered=1))
        parent.tell(done=packed(logits))


def main() -> None:
    """See `work_for_parent`."""
    work_for_parent(answer_texts)


if __name__ == "__main__":
    main()
