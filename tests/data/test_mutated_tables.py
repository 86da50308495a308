"""Tables damaged at random: read, or refused in a sentence of bearable length. The seed is fixed, so is the count."""

import gzip
import io
import json
import random
import warnings

import pandas as pd
import pytest

from lora_cls.data import load_test, load_train
from lora_cls.errors import LoraClsError
from lora_cls.recipe import Data

N_EACH = 60
FRAME = pd.DataFrame({
    "id": [f"t{i}" for i in range(12)],
    "text": [f'some "text", größer {i}\nand more' for i in range(12)],
    "tags": [["joy", "anger"][: i % 3] for i in range(12)],
    "joy": [i % 2 for i in range(12)],
    "w": [0.5] * 12,
})  # fmt: skip
PIECES = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b",", b"\t", b"\r", b"\n", b"[", b"]", b"{", b"}", b"\xe9", b"\\ud800",
    b"NaN",    b"1" * 400, b"1" * 5000, b"[" * 3000, b"null", b"x" * 50_000,
    b"sep=,\n", b"id", b"-1e999", b"true", b"\xe2\x80\x8b",
)  # fmt: skip


def originals():
    lines = FRAME.to_json(orient="records", lines=True, force_ascii=False).encode()
    comma = FRAME.to_csv(index=False).encode()
    parquet = io.BytesIO()
    FRAME.to_parquet(parquet)
    return {
        ".csv": comma,
        ".tsv": FRAME.to_csv(index=False, sep="\t").encode(),
        ".jsonl": lines,
        ".json": json.dumps(json.loads(FRAME.to_json(orient="records")), indent=1).encode(),
        ".csv.gz": gzip.compress(comma),
        ".parquet": parquet.getvalue(),
    }


def mutated(content, rng):
    for _ in range(rng.randint(1, 4)):
        at, until = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        kind = rng.randrange(5)
        if kind == 0:
            content = content[:at] + rng.choice(PIECES) + content[at:]
        elif kind == 1:
            content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        elif kind == 2:
            content = content[:at] + content[at + rng.randint(1, 20) :]
        elif kind == 3:
            content = content[:until] + content[at:until] + content[until:]
        else:
            content = content[:at]
    return content


CONFIGS = (
    Data(),
    Data(label_columns=["tags"]),
    Data(label_columns=["joy"], weight_column="w"),
    Data(label_columns=["w"], soft_labels=True, text_template="{text} {id}"),
    Data(label_columns=["tags"], label_delimiter=",", on_missing="drop"),
)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".csv.gz", ".parquet"])
def test_damaged_tables(tmp_path, suffix):
    """No error but ours, none longer than a screen."""
    rng = random.Random(f"tables{suffix}")
    original, file = originals()[suffix], tmp_path / f"t{suffix}"
    test = pd.DataFrame({"id": ["x"], "text": ["new text"]})
    said: list[str] = []
    for number in range(N_EACH):
        file.write_bytes(mutated(original, rng))
        config = CONFIGS[number % len(CONFIGS)]
        for read in (lambda config=config: load_train(config, file, test), lambda: load_test(Data(), file)):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read()
            except LoraClsError as error:
                said.append(str(error))
            except Exception as error:
                raise AssertionError(f"{number}: {type(error).__name__}: {error}") from error
    assert said
    assert [text[:500] for text in said if len(text) >= 2000] == []
