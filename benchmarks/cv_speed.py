"""Training rows per second: the notebook way, good practice, and ours, step by step, in one alternating run.

    python -m benchmarks.cv_speed --data train.csv --labels joy fear ... [--model smollm2-135m] [--rounds 7]

Every way is a process of its own that waits while the others work, so that drifts of the machine hit all alike; each
round trains so many batches, and medians of rounds are compared. `notebook`: Hugging Face Trainer, PEFT all-linear
r=16, fp32, padded to 128, batches of 8. `good practice`: Trainer, bf16 autocast, dynamic padding, grouped by length,
batches of 16. All others are recipes of ours with r=16 and batches of 16. Where a cache is built, its seconds per text
are added as a cross-validation of 10 folds and 3 epochs pays them: once for 27 trainings of each text.

GFLOP/s counts the matrix products that were really computed, padding included, against the machine's own rate of one
product of a layer's size, measured in the same rounds.

`--guard` compares all layers with good practice, and with the steps of before (`engine.short_steps=false`), in rounds
of few batches whose ratios are taken pair by pair. It ends with exit code 1 and a sentence where a ratio is lower than
`GUARD` and `SHORT` say. By hand, before a release.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import commit, machine

TRAININGS = 27  # of each text in 10 folds and 3 epochs
LORA = ["lora.r=16", "lora.lora_alpha=32", "train.per_device_train_batch_size=16"]
# way: overrides of our recipe; None for the Trainer
WAYS: dict[str, list[str] | None] = {
    "notebook": None,
    "good practice": None,
    "all layers, PEFT's own forward": LORA,
    "all layers, without short steps": [*LORA, "engine.short_steps=false"],
    "all layers": LORA,
    "top 1/2, without short steps": [*LORA, "lora.top_layers=0.5", "engine.short_steps=false"],
    "top 1/2, no cache": [*LORA, "lora.top_layers=0.5", "engine.prefix_cache=false"],
    "top 1/2": [*LORA, "lora.top_layers=0.5"],
    "top 1/3": [*LORA, "lora.top_layers=0.333"],
    "top 1/4": [*LORA, "lora.top_layers=0.25"],
}
GUARD = {"smollm2-135m": 1.5, "gemma-3-270m": 1.5, "minilm-l6": 1.5, "mpnet-base": 1.5}  # x good practice, at least
SHORT = 0.97  # with short steps at least so fast as without: below 1 by what paired rounds differ
STEPS = {"notebook": 5}  # batches in a round; 16 where nothing else is said
MATRIX = "matrix product"


class Rounds:
    """Between a worker and the one who asks: waits for a line, works a round, answers with a line."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done = steps, 0
        self.rows = self.tokens = 0
        self.started = 0.0

    def wait(self) -> None:
        """Block until the next round is wanted; ends the process when none is."""
        from lora_cls.machine import give_back_memory

        give_back_memory()  # all ways wait at once: what one does not need, the others do
        if sys.stdin.readline().strip() != "go":
            answer(peak=peak())
            os._exit(0)
        self.rows = self.tokens = 0
        self.started = now()

    def step(self, rows: int, tokens: int) -> None:
        """One batch was trained on: so many rows, so many tokens with their padding."""
        self.done += 1
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens
        if self.done % self.steps == 0:
            answer(rows=self.rows, tokens=self.tokens, seconds=now() - self.started)
            self.wait()


def now() -> float:
    """The time when all that was asked of a GPU is done."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak() -> int:
    """Bytes at the peak: allocated on the GPU where one is used, else of this process."""
    import torch

    if torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answer(**values: Any) -> None:
    """One line of JSON on standard output."""
    print("@" + json.dumps(values), flush=True)


def texts_and_labels(given: argparse.Namespace) -> tuple[list[str], np.ndarray]:
    """Texts of the table in its order, and their labels as floats."""
    from lora_cls import read_table

    table = read_table(given.data).head(given.rows)
    return list(table[given.text]), table[given.labels].astype(float).to_numpy()


def flops(step: Callable[[], int]) -> float:
    """Floating-point operations of matrix products per padded token; `step` trains on a batch, and says its tokens."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def packed(x: Any, weight: Any, *_: Any, **__: Any) -> int:  # shapes: of a product with packed weights
        return int(2 * np.prod(x) * weight[0])

    products = {torch.ops.mkldnn._linear_pointwise: packed}
    with FlopCounterMode(display=False, custom_mapping=products) as counter:
        tokens = step()
    return float(counter.get_total_flops()) / tokens


def work_with_trainer(way: str, given: argparse.Namespace) -> None:
    """The Hugging Face Trainer on the same texts."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from lora_cls import load_recipe
    from lora_cls.modeling.source import find_source

    backbone = load_recipe(given.model, given.set).backbone
    assert backbone is not None
    path = find_source(backbone.name_or_path).path_or_id
    texts, labels = texts_and_labels(given)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=labels.shape[1], problem_type="multi_label_classification", dtype=torch.float32
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="SEQ_CLS")
    model = get_peft_model(model, config)
    model.to(given.device)
    notebook = way == "notebook"
    mixed = not notebook and given.precision != "float32"
    encoded = tokenizer(texts, truncation=True, max_length=128, padding="max_length" if notebook else False)
    data = [{key: encoded[key][i] for key in encoded} | {"labels": list(row)} for i, row in enumerate(labels)]
    rounds = Rounds(STEPS.get(way, 16))
    sizes: list[tuple[int, int]] = []
    collate = DataCollatorWithPadding(tokenizer)

    def collator(rows: Any) -> Any:
        batch = collate(rows)
        sizes.append(tuple(batch["input_ids"].shape))
        return batch

    class Pause(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 2:  # warmed up
                rounds.wait()
            elif state.global_step > 2:
                rows, tokens = sizes[state.global_step - 1]
                rounds.step(rows, rows * tokens)

    batch = 8 if notebook else 16
    arguments = TrainingArguments(
        given.scratch, per_device_train_batch_size=batch, num_train_epochs=100, report_to=[],
        bf16=mixed and given.precision == "bfloat16", fp16=mixed and given.precision == "float16",
        train_sampling_strategy="random" if notebook else "group_by_length", save_strategy="no",
        logging_strategy="no", disable_tqdm=True, use_cpu=given.device == "cpu",
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator, callbacks=[Pause()])

    def step() -> int:
        chosen = collate(data[:batch]).to(given.device)
        with torch.autocast(given.device, getattr(torch, given.precision), enabled=mixed):
            model(**chosen).loss.backward()
        model.zero_grad()
        return int(chosen["input_ids"].numel())

    answer(flops=flops(step), cache_seconds=0.0)
    trainer.train()


@dataclass
class Fold:
    """A fold of ours, begun: what a step of training needs."""

    trainer: Any
    model: Any
    objective: Any
    accelerator: Any
    optimizer: Any
    size: int
    clip: float

    def step(self, pieces: np.ndarray) -> int:
        """Train on some pieces of text; their tokens, padding included."""
        from lora_cls.training.loop import accumulated_loss, update

        _, masks = accumulated_loss(self.model, self.objective, [pieces], self.accelerator)
        update(self.optimizer, 1.0, self.clip, self.accelerator)
        return int(sum(mask.size for mask in masks))

    def batches(self) -> Iterator[np.ndarray]:
        """Batches as training takes them, epoch after epoch, without end."""
        from lora_cls.text.tokens import shuffled_batches

        for epoch in count():
            yield from shuffled_batches(self.objective.lengths, self.size, np.random.default_rng(epoch))


def begin(overrides: Sequence[str], given: argparse.Namespace) -> Fold:
    """Load a recipe's model and begin a fold over all rows."""
    from lora_cls import load_recipe, read_table
    from lora_cls.data import load_train
    from lora_cls.training.loop import make_optimizer
    from lora_cls.training.transformer import TransformerLearner

    overrides = [
        "quantization=null",
        *overrides,
        "task=multi_label",
        f"backbone.dtype={given.precision}",
        "data.max_length=128",
        f"engine.num_threads={given.threads}",
        f"data.label_columns=[{', '.join(given.labels)}]",
        f"data.text_columns=[{given.text}]",
        *given.set,
    ]
    recipe = load_recipe(given.model, overrides)
    data = load_train(recipe.data, read_table(given.data).head(given.rows))
    trainer = TransformerLearner(recipe, data.label_names).prepare(data)
    trainer.measure()
    model, objective, _, accelerator = trainer.begin_fold(0, np.arange(len(data)))
    optimizer = accelerator.prepare(make_optimizer(model, recipe))
    model.train()
    train = recipe.train
    return Fold(
        trainer, model, objective, accelerator, optimizer, train.per_device_train_batch_size, train.max_grad_norm
    )


def work_with_recipe(way: str, given: argparse.Namespace) -> None:
    """A recipe of ours: the learner's own model, objective and steps."""
    from lora_cls.modeling import adapter, prefix_cache

    if "PEFT" in way:
        adapter.speed_up = lambda backbone: 0
    folder = Path(given.scratch) / way.replace("/", "-")  # empty: to be filled, and timed
    shutil.rmtree(folder, ignore_errors=True)
    prefix_cache.cache_folder = lambda: folder
    fold = begin(WAYS[way] or [], given)
    session, training = fold.trainer.session, fold.trainer.rows
    cache_seconds = 0.0
    if (cache := session.prefix_cache(training.tokens)) is not None:
        cache.fill(training.tokens)
        used = cache.used
        cache_seconds = used.seconds / used.computed if used.computed else float("nan")
    fold.model.train()
    answer(flops=flops(lambda: fold.step(np.arange(16))), cache_seconds=cache_seconds)
    rounds = Rounds(STEPS.get(way, 16))
    for number, pieces in enumerate(fold.batches()):
        tokens = fold.step(pieces)
        if number:
            rounds.step(len(pieces), tokens)
        else:  # warmed up
            rounds.wait()


def work_matrix(given: argparse.Namespace) -> None:
    """Products of the size of a transformer layer's, in the two precisions."""
    import torch

    answer(flops=0.0, cache_seconds=0.0)
    while sys.stdin.readline().strip() == "go":
        rates = {}
        for dtype in (torch.bfloat16, torch.float32):
            a, b = torch.randn(512, 768, dtype=dtype), torch.randn(768, 2048, dtype=dtype)
            times = []
            for _ in range(60):
                started = time.perf_counter()
                a @ b
                times.append(time.perf_counter() - started)
            rates[str(dtype)] = 2 * 512 * 768 * 2048 / statistics.median(times) / 1e9
        answer(rates=rates)
    answer(peak=0)


class Worker:
    """A way's process, from the side of the one who asks."""

    def __init__(
        self, way: str, arguments: Sequence[str], started: Callable[[Any], None] | None = None, **options: Any
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cv_speed", *arguments, "--worker", way],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options,
        )  # fmt: skip
        if started is not None:
            started(self.process)
        first = self.hear()
        self.flops, self.cache_seconds = float(first["flops"]), float(first["cache_seconds"])
        self.rounds: list[dict[str, Any]] = []
        self.peak = 0

    def hear(self) -> dict[str, Any]:
        """The next answer."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return dict(json.loads(line[1:]))
        raise SystemExit(f"A way stopped: {self.process.args}")

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def round(self) -> None:
        """Work a round, and keep its figures."""
        self.say("go")
        self.rounds.append(self.hear())

    def end(self) -> None:
        self.say("end")
        self.peak = int(self.hear()["peak"])
        self.process.wait()

    @property
    def ms(self) -> list[float]:
        """Milliseconds per row, every round; building the cache included as a whole cross-validation pays it."""
        return [1000 * (r["seconds"] / r["rows"] + self.cache_seconds / TRAININGS) for r in self.rounds]

    @property
    def gflops(self) -> float:
        """Median rate of matrix products."""
        return statistics.median(self.flops * r["tokens"] / r["seconds"] / 1e9 for r in self.rounds)


def table(workers: dict[str, Worker], given: argparse.Namespace) -> list[str]:
    """The result file."""
    from importlib.metadata import version

    rates = {
        dtype: statistics.median(r["rates"][f"torch.{dtype}"] for r in workers[MATRIX].rounds)
        for dtype in ("bfloat16", "float32")
    }
    spread = {dtype: [r["rates"][f"torch.{dtype}"] for r in workers[MATRIX].rounds] for dtype in rates}
    median = {way: statistics.median(worker.ms) for way, worker in workers.items() if way != MATRIX}
    lines = [
        f"# Training speed of {given.model}, rows of {given.data.stem}",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, commit {commit()}. {machine()}; "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
        + f". `python -m benchmarks.cv_speed --model {given.model} --rounds {given.rounds} --threads {given.threads}`, "
        "in alternation; median of the rounds, and their range; ratios are medians over paired rounds.",
        "",
        f"Matrix products of 512 x 768 by 768 x 2048, measured in the same rounds: bf16 {rates['bfloat16']:.0f} "
        f"({min(spread['bfloat16']):.0f} to {max(spread['bfloat16']):.0f}) GFLOP/s, fp32 {rates['float32']:.0f} "
        f"({min(spread['float32']):.0f} to {max(spread['float32']):.0f}).",
        "",
        "| way | ms/row | range | rows/s | x notebook | x good practice | x without short steps | peak GiB | GFLOP/s | "
        "share of the rate |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for way, ms in median.items():
        worker = workers[way]
        rate = rates["float32" if way == "notebook" else "bfloat16"]
        ratios = [
            f"{paired(workers[other], worker):.2f}" if other in median else "-"
            for other in ("notebook", "good practice", f"{way}, without short steps")
        ]
        lines.append(
            f"| {way} | {ms:.1f} | {min(worker.ms):.1f} to {max(worker.ms):.1f} | {1000 / ms:.1f} | "
            f"{' | '.join(ratios)} | {worker.peak / 2**30:.2f} | {worker.gflops:.0f} | {worker.gflops / rate:.0%} |"
        )
    lines += ["", "Seconds to build the cache, per text: " + ", ".join(
        f"{way} {1000 * w.cache_seconds:.1f} ms" for way, w in workers.items() if w.cache_seconds
    ) + f"; a {TRAININGS}th of it is in ms/row.", ""]  # fmt: skip
    return lines


def paired(before: Worker, after: Worker) -> float:
    """How many times as fast the second way is: median over the rounds, each against the round beside it."""
    return statistics.median(a / b for a, b in zip(before.ms, after.ms, strict=True))


def guard(workers: dict[str, Worker], given: argparse.Namespace) -> list[str]:
    """What is slower than it should be, a sentence each."""
    now = workers["all layers"]
    bounds = {"good practice": GUARD[given.model], "all layers, without short steps": SHORT}
    ratios = {way: paired(workers[way], now) for way in bounds}
    lines = [
        f"# The guard of the training speed of {given.model}",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}, commit {commit()}. {machine()}. `python -m benchmarks.cv_speed "
        f"--guard --model {given.model} --rounds {given.rounds}`: all layers, against each way below; medians of the "
        "ratios of paired rounds.",
        "",
        "| against | times as fast | at least | peak GiB, then now |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {way} | {ratios[way]:.2f} | {bounds[way]:.2f} | {workers[way].peak / 2**30:.2f}, {now.peak / 2**30:.2f} |"
        for way in bounds
    ]
    target = given.results / f"cv_speed_guard_{given.model}.md"
    target.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(target)
    return [
        f"{given.model}: all layers train {ratios[way]:.2f} times as fast as {way}, and should {bounds[way]:.2f} times."
        for way in bounds
        if ratios[way] < bounds[way]
    ]


def main() -> None:
    """Parse; as a worker, work; else ask the workers in turn and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels", nargs="+", required=True)
    parser.add_argument("--text", default="text")
    parser.add_argument("--model", default="smollm2-135m", help="a recipe")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None, help="of every way; the physical cores by default")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--set", action="append", default=[], help="key=value, for every recipe of ours")
    parser.add_argument("--only", action="append", choices=list(WAYS))
    parser.add_argument("--guard", action="store_true", help="fail where all layers are slower than they should be")
    parser.add_argument("--steps", type=int, default=None, help="batches in a round; 16 (2 with --guard)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--scratch", default="/tmp/cv_speed", help="a folder for caches and what Trainer wants")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    from lora_cls.machine import physical_cores

    if given.guard:
        if given.model not in GUARD:
            parser.error(f"--guard knows {', '.join(GUARD)}")
        given.only, given.steps = ["good practice", "all layers, without short steps", "all layers"], given.steps or 2
    if given.steps:
        STEPS.update(dict.fromkeys(WAYS, given.steps))
    given.threads = given.threads or physical_cores()
    if given.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # ours would take a GPU
    if given.worker:
        import torch

        torch.set_num_threads(given.threads)
    if given.worker == MATRIX:
        work_matrix(given)
    elif given.worker:
        (work_with_trainer if WAYS[given.worker] is None else work_with_recipe)(given.worker, given)
    else:
        workers = {}
        for way in [MATRIX, *(given.only or WAYS)]:
            workers[way] = Worker(way, sys.argv[1:])
            print(f"{way}: ready", file=sys.stderr, flush=True)
        for number in range(given.rounds):
            for worker in workers.values():
                worker.round()
            print(f"round {number + 1} of {given.rounds}", file=sys.stderr, flush=True)
        for worker in workers.values():
            worker.end()
        if given.guard:
            slow = guard(workers, given)
            sys.exit("\n".join(slow) or 0)
        target = given.results / f"cv_speed_{given.model}.md"
        target.write_text("\n".join(table(workers, given)), encoding="utf-8")
        print(target)


if __name__ == "__main__":
    main()
