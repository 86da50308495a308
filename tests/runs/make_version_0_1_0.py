"""What made `version_0_1_0.zip`: runs of this package as it was at commit 7b0bd2f, of 18 made-up rows and a tiny model.

    mkdir /opt/old && cd /opt/old && PYTHONPATH=CHECKOUT_OF_7b0bd2f python make_version_0_1_0.py && zip -rq OUT.zip *

That version gives the same bytes again, but for times. Pages (0.5 MB each) are left out.
"""

import os
import platform
import shutil
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "LORA_CLS_CACHE": "cache", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = {
    "joy": ["happy", "lovely", "great", "smiling"],
    "anger": ["angry", "furious", "hate", "insulted"],
    "fear": ["afraid", "scared", "worried", "danger"],
}
FILLER = [
    *("the", "a", "my", "we", "they", "it", "was", "had", "came", "went", "saw", "again", "today", "about", "train"),
    *("dog", "house", "letter", "friend", "garden"),
]


def table(n_rows, name, rng):
    rows = []
    for i in range(n_rows):
        labels = [int(j == i % 3 or rng.random() < 0.2) for j in range(3)]
        words = [str(rng.choice(of)) for of, on in zip(WORDS.values(), labels, strict=True) if on for _ in range(2)]
        words += list(rng.choice(FILLER, size=int(rng.integers(3, 9))))
        rows.append((f"{name}{i:02d}", " ".join(map(str, rng.permutation(words))), *labels))
    return pd.DataFrame(rows, columns=["id", "text", *WORDS])


def write_base(folder):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = special + sorted({*FILLER, *(word for words in WORDS.values() for word in words)})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, initializer_range=0.1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)


def main():
    from lora_cls.cross_validation import refit
    from lora_cls.exporting import export

    from lora_cls import cross_validate

    platform.platform = lambda: "Linux"
    rng = np.random.default_rng(0)
    table(18, "row", rng).to_csv("train.csv", index=False)
    labelled = table(6, "new", rng)
    labelled.to_csv("labelled.csv", index=False)
    labelled[["id", "text"]].to_csv("test.csv", index=False)
    write_base("base")
    common = {"cv": {"n_splits": 2}, "thresholds": {"min_positives": 2}}
    lora = {
        "backbone": {"name_or_path": "base", "dtype": "float32"},
        "head": {"pooling": "mean", "learning_rate": 1e-2},
        "lora": {"r": 2, "lora_alpha": 4},
        "data": {"max_length": 24},
        "train": {"num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
        "engine": {"num_threads": 1},
    }
    run = cross_validate(common | lora, "train.csv", "test.csv", "lora")
    refit(run, "train.csv")
    export(run, "export")
    cross_validate(common | {"tfidf": {"min_df": 1}}, "train.csv", "test.csv", "tfidf")
    for name in ("lora", "tfidf"):
        Path(name, "report.html").unlink()
    shutil.rmtree("cache")


if __name__ == "__main__":
    main()
