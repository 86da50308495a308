"""One GPU in under ten minutes: rows per second of ours against good practice, memory against the estimate, attention.

    python -m benchmarks.gpu                                   # writes benchmarks/results/gpu_CARD.md
    python -m benchmarks.gpu --device cpu --quick --results X  # the same code without a GPU, to see that it runs

Every part is a process of its own: one that fails, or runs over its time, is written down with its error, and the rest
goes on. What does not fit into `--minutes` is written as not run. Texts are those of the package's sample, repeated.
Good practice is that of `benchmarks.cv_speed`: Trainer and PEFT in mixed precision, grouped by length, in batches
of 16; ours trains the same r and batches. It is asked first and last: what lies between the two is the card's drift.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.cv_speed import Worker, now, texts_and_labels
from benchmarks.machine import commit, machine

MODELS = ["minilm-l6", "smollm2-135m"]  # recipes whose models come as packages
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "flash-attn", "lora_cls")
RESULTS = Path(__file__).parent / "results"
PART_SECONDS = 120  # no part may take longer
FULL = ["lora=null", "train.learning_rate=5e-5"]
Way = tuple[str, str, str, list[str]]  # what it is called, `cv_speed`'s name for it, precision, settings


def ways(half: str, quick: bool) -> list[Way]:
    """What is trained, in order; `half` is the 16-bit precision of this card."""
    if quick:
        return [("good practice", "good practice", "float32", []), ("LoRA", "all layers", "float32", [])]
    attention = "backbone.attn_implementation"
    found: list[Way] = [("good practice", "good practice", half, []), ("LoRA", "all layers", half, [])]
    found += [("LoRA", "all layers", other, []) for other in ("float16", "float32") if other != half]
    return [
        *found,
        ("LoRA, upper half, cached", "top 1/2", half, []),
        ("LoRA, upper half, no cache", "top 1/2, no cache", half, []),
        ("LoRA, PEFT's own forward", "all layers, PEFT's own forward", half, []),
        ("QLoRA, nf4", "all layers", half, ["quantization={load_in_4bit: true}"]),
        ("LoRA on int8", "all layers", half, ["quantization={load_in_8bit: true}"]),
        ("full", "all layers", half, FULL),
        ("full", "all layers", "float32", FULL),
        ("LoRA, eager attention", "all layers", half, [f"{attention}=eager"]),
        ("LoRA, flash attention", "all layers", half, [f"{attention}=flash_attention_2"]),
        ("LoRA, engine.deterministic", "all layers", half, ["engine.deterministic=true"]),
        ("good practice again", "good practice", half, []),
    ]


class Failed(Exception):  # noqa: N818 - of a part, not of the benchmark
    """Why a part has no figure."""


class Bench:
    """Parts with a common time.

    Parameters
    ----------
    given : the command line
    scratch : a folder for tables, caches and what processes print
    """

    def __init__(self, given: argparse.Namespace, scratch: Path) -> None:
        self.given, self.scratch = given, scratch
        self.deadline = time.monotonic() + 60 * given.minutes
        self.environment = os.environ | {"HF_HUB_OFFLINE": "1", "LORA_CLS_CACHE": str(scratch / "cache")}
        if given.device == "cpu":
            self.environment |= {"CUDA_VISIBLE_DEVICES": ""}
        self.table, self.labels = self._table()
        self.failures: list[str] = []

    def _table(self) -> tuple[Path, list[str]]:
        import pandas as pd

        import lora_cls

        sample = pd.read_csv(Path(lora_cls.__file__).parent / "sample" / "train.csv")
        repeats = -(-self.given.rows // len(sample))
        table = pd.concat([sample.assign(text=sample["text"] + f" {i}") for i in range(repeats)]).head(self.given.rows)
        table = table.assign(id=[f"r{i}" for i in range(len(table))])
        table.to_csv(self.scratch / "train.csv", index=False)
        return self.scratch / "train.csv", [name for name in table.columns if name not in ("id", "text")]

    def arguments(self, model: str) -> list[str]:
        """What every process is told of data and device."""
        return [
            "--data", str(self.table), "--labels", *self.labels, "--rows", str(self.given.rows), "--model", model,
            "--device", self.given.device, "--scratch", str(self.scratch),
        ]  # fmt: skip

    def attempt(self, name: str, part: Callable[[float, Any], dict[str, Any]]) -> dict[str, Any] | str:
        """What a part found, or why it found nothing. `part` is given its seconds, and a file for what it says."""
        left = self.deadline - time.monotonic()
        print(f"{name} ({left:.0f} s left)", file=sys.stderr, flush=True)
        if left < 5:
            return "not run: the time was up"
        seconds = min(PART_SECONDS, left)
        with open(self.scratch / "said.txt", "w+", encoding="utf-8") as said:
            try:
                return part(seconds, said)
            except (Failed, OSError, SystemExit, subprocess.SubprocessError, ValueError, KeyError) as error:
                late = isinstance(error, subprocess.TimeoutExpired) or time.monotonic() > self.deadline
                said.seek(0)
                lines = [line.strip() for line in said if line.strip()]
                why = (
                    f"ran over its {seconds:.0f} s"
                    if late
                    else lines[-1]
                    if lines
                    else f"{type(error).__name__}: {error}"
                )
                self.failures.append(f"{name}: {why}")
                return f"failed: {why[:200]}"

    def speed(self, model: str, way: Way) -> dict[str, Any] | str:
        """Rows per second of training: the median of the rounds, their range, and the peak of the memory."""
        name, kind, precision, settings = way

        def part(seconds: float, said: Any) -> dict[str, Any]:
            sets = [part for setting in settings for part in ("--set", setting)]
            arguments = [*self.arguments(model), "--precision", precision, "--threads", str(self.given.threads), *sets]
            worker: Worker | None = None
            started = time.monotonic()
            process: list[Any] = []
            timer = threading.Timer(seconds, lambda: [p.kill() for p in process])
            timer.start()
            try:
                worker = Worker(kind, arguments, stderr=said, env=self.environment, started=process.append)
                for _ in range(self.given.rounds):
                    worker.round()
                worker.end()
            except BaseException as error:
                for one in process:
                    one.kill()
                if time.monotonic() - started >= seconds:
                    raise subprocess.TimeoutExpired(name, seconds) from error
                raise
            finally:
                timer.cancel()
            rates = [r["rows"] / r["seconds"] for r in worker.rounds]
            return {"rates": rates, "rate": statistics.median(rates), "peak": worker.peak}

        return self.attempt(f"{model}: {name}, {precision}", part)

    def process(self, name: str, *arguments: str) -> dict[str, Any] | str:
        """A part that is a process and prints one line of JSON last."""

        def part(seconds: float, said: Any) -> dict[str, Any]:
            done = subprocess.run(
                [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=said, text=True, timeout=seconds,
                env=self.environment,
            )  # fmt: skip
            if done.returncode:
                raise Failed(f"exit code {done.returncode}")
            found = json.loads(done.stdout.splitlines()[-1])
            return found if isinstance(found, dict) else {"value": found}

        return self.attempt(name, part)


def card(device: str) -> tuple[str, list[str]]:
    """Name of the card, and lines on it, its driver and the versions."""
    import torch

    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"no {package}")
    lines = [f"{datetime.now(timezone.utc):%Y-%m-%d}, commit {commit()}, {machine()}. {', '.join(versions)}."]
    if device == "cpu":
        return "cpu", ["**On a CPU, to see that it runs: no figure here says anything of a GPU.**", *lines]
    properties = torch.cuda.get_device_properties(0)
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        driver = ""
    more = f" (the first of {torch.cuda.device_count()})" if torch.cuda.device_count() > 1 else ""
    return properties.name, [
        f"{properties.name}{more}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.total_memory / 2**30:.1f} GiB, driver {driver or 'unknown'}, CUDA {torch.version.cuda}.",
        *lines,
    ]


def row(*cells: object) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def speeds(bench: Bench, half: str) -> Iterator[str]:
    """Training, a table per model."""
    for model in bench.given.models:
        yield f"\n## Training, `{Path(model).stem}`\n"
        yield row("way", "precision", "rows/s", "range of the rounds", "x good practice", "peak GiB")
        yield row(*["---"] * 6)
        practice: float | None = None
        for way in ways(half, bench.given.quick):
            found = bench.speed(model, way)
            if isinstance(found, str):
                yield row(way[0], way[2], found, "", "", "")
                continue
            if way[0] == "good practice":
                practice = found["rate"]
            ratio = f"{found['rate'] / practice:.2f}" if practice else ""
            spread = f"{min(found['rates']):.0f} to {max(found['rates']):.0f}"
            yield row(way[0], way[2], f"{found['rate']:.0f}", spread, ratio, f"{found['peak'] / 2**30:.2f}")


def memory(bench: Bench, half: str) -> Iterator[str]:
    """What training takes, against `lora_cls.training.memory`."""
    yield "\n## Memory\n"
    yield "Allocated at the peak, without the CUDA context (`Memory.libraries`, which is in neither column).\n"
    yield row("recipe", "method", "batch x tokens", "estimated GiB", "measured GiB", "estimated / measured")
    yield row(*["---"] * 6)
    lora = {"lora": {"r": 16, "lora_alpha": 32}, "quantization": None}
    methods: dict[str, dict[str, Any]] = {
        "LoRA": lora,
        "full": {"lora": None, "quantization": None, "train.learning_rate": 5e-5},
        "LoRA, checkpointing": lora | {"train.gradient_checkpointing": True},
        "QLoRA, nf4": lora | {"quantization": {"load_in_4bit": True}},
    }
    for model in bench.given.models:
        for method, changes in methods.items():
            if bench.given.quick and method != "LoRA":
                continue
            settings = {"backbone.dtype": "float32" if bench.given.quick else half, "train.num_train_epochs": 1}
            found = bench.process(
                f"{model}: memory, {method}", "benchmarks.gpu", *bench.arguments(model), "--part", "memory",
                "--changes", json.dumps(changes | settings),
            )  # fmt: skip
            if isinstance(found, str):
                yield row(f"`{Path(model).stem}`", method, found, "", "", "")
                continue
            expected, measured = found["estimated"] / 2**30, found["measured"] / 2**30
            size = f"{found['rows']} x {found['tokens']}"
            ratio = f"{expected / measured:.2f}"
            yield row(f"`{Path(model).stem}`", method, size, f"{expected:.2f}", f"{measured:.2f}", ratio)


def predictions(bench: Bench, half: str) -> Iterator[str]:
    """Answers for the same texts, by precision."""
    yield "\n## Prediction\n"
    yield row("recipe", "precision", "rows/s", "range of the rounds")
    yield row(*["---"] * 4)
    for model in bench.given.models:
        for precision in ("float32",) if bench.given.quick else (half, "float32"):
            found = bench.process(
                f"{model}: predict, {precision}", "benchmarks.gpu", *bench.arguments(model), "--part", "predict",
                "--changes", json.dumps({"backbone.dtype": precision}), "--rounds", str(bench.given.rounds),
            )  # fmt: skip
            if isinstance(found, str):
                yield row(f"`{Path(model).stem}`", precision, found, "")
                continue
            rates = found["rates"]
            spread = f"{min(rates):.0f} to {max(rates):.0f}"
            yield row(f"`{Path(model).stem}`", precision, f"{statistics.median(rates):.0f}", spread)


def kernels(bench: Bench) -> Iterator[str]:
    """Attention alone, forward and backward, on texts of different length."""
    yield "\n## Attention alone\n"
    yield "Forward and backward of 12 heads of 64, 64 texts of 8 to 256 tokens (by a fixed draw), in 16 bits.\n"
    yield row("kernel", "ms")
    yield row("---", "---")
    found = bench.process(
        "attention alone", "benchmarks.gpu", *bench.arguments(bench.given.models[0]), "--part", "attention"
    )
    for name, value in found.items() if isinstance(found, dict) else [("all", found)]:
        yield row(name, f"{value:.3f}" if isinstance(value, float) else value)


# Parts, in processes of their own


def part_memory(given: argparse.Namespace) -> dict[str, Any]:
    """The peak of a few steps, beside the estimate."""
    import torch

    from benchmarks.memory import N_LABELS, measure
    from lora_cls import load_recipe
    from lora_cls.modeling.loading import load_config
    from lora_cls.modeling.source import find_source
    from lora_cls.training.memory import estimate_memory

    recipe = load_recipe(given.model, json.loads(given.changes))
    assert recipe.backbone is not None
    config = load_config(recipe.backbone, find_source(recipe.backbone.name_or_path))
    dtype = getattr(torch, recipe.backbone.dtype)
    estimate = estimate_memory(recipe, config, dtype=dtype, device=given.device, n_labels=N_LABELS)
    expected = estimate.total - (estimate.libraries if given.device == "cuda" else 0)
    size, length = recipe.train.per_device_train_batch_size, recipe.data.max_length
    return {"estimated": expected, "measured": measure(recipe), "rows": size, "tokens": length}


def part_predict(given: argparse.Namespace) -> dict[str, Any]:
    """Rows per second of answers by a fresh model, after one round to warm up."""
    import numpy as np

    from lora_cls import load_recipe
    from lora_cls.training.transformer import TransformerLearner

    recipe = load_recipe(given.model, json.loads(given.changes) | {"quantization": None})
    texts, _ = texts_and_labels(given)
    session = TransformerLearner(recipe, given.labels).session
    model, tokens, rates = session.fresh_model(0), session.encode(texts), []
    for _ in range(given.rounds + 1):
        started = now()
        session.answer(model, tokens, np.ones(len(given.labels)))
        rates.append(len(texts) / (now() - started))
    return {"rates": rates[1:]}


def part_attention(given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds by kernel; in place of one that fails its error."""
    import numpy as np
    import torch
    from torch.nn import functional as F

    device = torch.device(given.device)
    bf16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = torch.bfloat16 if bf16 else torch.float16
    lengths = np.random.default_rng(0).integers(8, 257, size=64 if device.type == "cuda" else 4)
    longest, total = int(lengths.max()), int(lengths.sum())
    ends = torch.tensor(np.append(0, np.cumsum(lengths)), dtype=torch.int32, device=device)

    def tensors(*shape: int) -> list[torch.Tensor]:
        return [torch.randn(*shape, 12, 64, dtype=dtype, device=device, requires_grad=True) for _ in range(3)]

    mask = (
        torch.arange(longest, device=device)[None, None, None]
        < torch.as_tensor(lengths, device=device)[:, None, None, None]
    )

    def fused(masked: bool) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in padded)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask if masked else None)

    def varlen() -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        found = varlen_attn(*ragged, ends, ends, longest, longest)
        return found if isinstance(found, torch.Tensor) else found[0]

    def flash() -> torch.Tensor:
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(*ragged, ends, ends, longest, longest)

    padded, ragged = tensors(len(lengths), longest), tensors(total)
    found: dict[str, Any] = {}
    for name, kernel in {
        "sdpa, padded, with a mask": lambda: fused(True),
        "sdpa, padded, without one (wrong answers, for comparison)": lambda: fused(False),
        "torch.nn.attention.varlen, no padding": varlen,
        "flash-attn, no padding": flash,
    }.items():
        try:
            times = []
            for _ in range(4 if device.type == "cpu" else 25):
                started = now()
                kernel().float().sum().backward()
                times.append(1000 * (now() - started))
            found[name] = statistics.median(times[len(times) // 5 :])
        except Exception as error:  # whatever this card, or this machine, does not have
            found[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    return found


PARTS = {"memory": part_memory, "predict": part_predict, "attention": part_attention}


def write(given: argparse.Namespace) -> Path:
    """All parts, one after the other, into the result file, which is renewed after every table."""
    import torch

    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        bench, started = Bench(given, Path(scratch)), time.monotonic()
        name, about = card(given.device)
        half = "bfloat16"
        if given.device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            half = "float16"
        target = Path(given.results) / f"gpu_{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"# One GPU: {name}", "", *about]
        lines += [f"{given.rows} texts of the package's sample, {given.rounds} rounds each; parts one after the other."]
        for part in (speeds(bench, half), memory(bench, half), predictions(bench, half), kernels(bench)):
            lines += list(part)
            target.write_text("\n".join(lines) + "\n", encoding="utf-8")
        lines += ["", f"All of it took {(time.monotonic() - started) / 60:.1f} minutes."]
        if bench.failures:
            lines += ["", "Failed:", "", *(f"- {failure}" for failure in bench.failures)]
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def main() -> None:
    """Parse; as a part, print one line of JSON; else ask all parts and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="few ways, rounds and rows")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--models", nargs="+", default=MODELS, help="recipes")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, help="a folder; needed with --device cpu, whose figures are not kept")
    for name in ("--part", "--changes", "--model", "--scratch", "--data"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--labels", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--text", default="text", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.rounds = given.rounds or (1 if given.quick else 5)
    given.rows = given.rows or (64 if given.quick else 2048)
    if given.part:
        print(json.dumps(PARTS[given.part](given)))
        return
    import torch

    from lora_cls.machine import physical_cores

    given.threads = given.threads or physical_cores()
    if given.device == "cpu" and given.results is None:
        parser.error("--device cpu needs --results FOLDER: what a CPU measures is not kept among the results.")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch.cuda.is_available() is False. --device cpu --quick --results FOLDER shows that it runs.")
    given.results = given.results or RESULTS
    print(write(given))


if __name__ == "__main__":
    main()
