"""What is said of runs in more than one place: scores, phases, bases, blends."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from lora_cls.errors import shorten
from lora_cls.evaluation import Interval, Metric, task_of
from lora_cls.recipe import Distill, Head, Recipe
from lora_cls.runs import RunFolder, RunInfo, Scores, TableScores
from lora_cls.runs.folder import TABLE_ROWS
from lora_cls.runs.records import BlendInfo, Parity

if TYPE_CHECKING:
    from lora_cls.training.estimate import Estimate

Cells = list[list[str]]
PHASES = {
    "load": "loading",
    "tokenize": "tokenizing",
    "adapt": "adapting the base (once)",
    "prefix": "lower layers (once)",
    "teachers": "teachers' answers",
    "train": "training",
    "score": "choosing among epochs",
    "predict": "prediction",
    "save": "writing",
    "tune": "thresholds and scores",
}
REUSED = {"token_ids": "token ids of {} texts", "hidden_states": "lower layers' hidden states of {} texts"}
OPTIMISTIC = "OPTIMISTIC: the epoch was chosen on the rows that are scored"
COMBINE = {
    "mean_proba": "the mean of their probabilities",
    "mean_logit": "the mean of their log-odds",
    "vote": "by vote",
}

NO_SCORE = (
    "It has no out-of-fold score: every training row was seen by one of the models that it is made of. The score of "
    "the run is that of its folds' models, and no promise for this one."
)
NO_SCORE_OF_ALL_ROWS = "It has no out-of-fold score of its own."
NO_SCORE_OF_ONE = "It has no score of its own: that of the run is its one fold's model's, before it was made into this."


def parity_sentence(parity: Parity) -> str:
    """How near an exported model's answers are to ours."""
    return (
        f"Computed in {parity.dtype}, probabilities of {parity.texts} texts differ by at most {parity.difference:.1g} "
        f"from those that lora_cls computes in float32, and {parity.decisions} decisions do."
    )


def base_name(recipe: Recipe) -> str:
    """What a run's models stand on, in words."""
    if recipe.blend is not None:
        return f"{len(recipe.blend.runs)} runs together (blend by {recipe.blend.how})"
    if recipe.backbone is None:
        return "TF-IDF and logistic regression"
    depth, name = recipe.backbone.num_hidden_layers, short_name(recipe.backbone.name_or_path)
    name = name if depth is None else f"the lowest {depth} layers of {name}"
    return f"{name}, read both ways" if recipe.backbone.bidirectional else name


def short_name(name_or_path: str) -> str:
    """A base's name; of a path that starts at the root or at home its last part, which tells nothing of the machine."""
    absolute = name_or_path.startswith("~") or any(
        kind(name_or_path).is_absolute() for kind in (PurePosixPath, PureWindowsPath)
    )
    return PureWindowsPath(name_or_path).name if absolute else name_or_path


def describe(recipe: Recipe) -> str:
    """A recipe in a few words: base and method."""
    if recipe.blend is not None:
        return f"blend of {len(recipe.blend.runs)}, {recipe.blend.how}"
    if recipe.backbone is None:
        return "TF-IDF, logistic regression"
    quantization = recipe.quantization
    if recipe.lora is None:
        method = "full"
    elif quantization is None:
        method = f"LoRA r={recipe.lora.r}"
    else:
        method = f"QLoRA {'8-bit' if quantization.load_in_8bit else '4-bit'} r={recipe.lora.r}"
    kind = "" if recipe.head.kind == Head().kind else f", {recipe.head.kind}"
    ways = ", bidirectional" if recipe.backbone.bidirectional else ""
    return f"{short_name(recipe.backbone.name_or_path)}, {method}{kind}{ways}"


def settings_rows(recipe: Recipe) -> list[tuple[str, str]]:
    """What was trained and how, as names and values: what somebody needs to judge a score or to make it again."""
    rows: list[tuple[str, Any]] = [("base and method", describe(recipe))]
    if recipe.tfidf is not None:
        tfidf = recipe.tfidf
        words, characters = ("{} to {}".format(*span) for span in (tfidf.word_ngram_range, tfidf.char_ngram_range))
        rows += [("n-grams", f"{words} words, {characters} characters"), ("C", f"{tfidf.C:g}")]
    if recipe.backbone is not None:
        train, data = recipe.train, recipe.data
        head = recipe.head.kind
        if recipe.adapt is not None:
            adapt = recipe.adapt
            how = "all weights" if adapt.lora_r is None else f"LoRA r={adapt.lora_r}"
            rate = f"learning rate {adapt.learning_rate:g}"
            rows.append(("base adapted to the texts", f"{adapt.num_train_epochs} epochs, {rate}, {how}"))
        rows.append(("head", head if head == "generate" else f"{head}, pooled by {recipe.head.pooling}"))
        if recipe.lora is not None:
            lora, targets = recipe.lora, recipe.lora.target_modules
            named = targets if isinstance(targets, str) else ", ".join(targets)
            rows += [
                ("LoRA", f"r {lora.r}, alpha {lora.lora_alpha:g}, dropout {lora.lora_dropout:g}"),
                (
                    "LoRA targets",
                    named if lora.top_layers is None else f"{named}, upper {lora.top_layers:.0%} of layers",
                ),
            ]
        batch = train.per_device_train_batch_size * train.gradient_accumulation_steps
        rate = f"{train.learning_rate:g}, {train.lr_scheduler_type}, warm-up {train.warmup_ratio:.0%}"
        if recipe.head.learning_rate is not None:
            rate += f"; head {recipe.head.learning_rate:g}"
        kept = train.select if train.average_epochs == 1 else f"mean of the last {train.average_epochs}"
        if train.ema_decay is not None:
            kept += f", moving average {train.ema_decay:g}"
        rows += [
            ("loss", recipe.loss.name),
            *([("teachers", teachers_sentence(recipe.distill))] if recipe.distill is not None else []),
            ("learning rate", rate),
            ("epochs", f"{train.num_train_epochs}, kept: {kept}"),
            ("batch", f"{batch} texts a step"),
            ("tokens", f"at most {data.max_length}, {data.long_text}"),
        ]
    if recipe.blend is None:
        rows.append(("seed", recipe.train.seed))
    rows.append(("folds", recipe.cv.n_splits))
    return [(name, str(value)) for name, value in rows]


def start_sentence(info: RunInfo) -> str | None:
    """Which run's weights training began with; None where it began with the plain base."""
    start = info.choices.get("start_from")
    if start is None:
        return None
    run, models = start["run"], list(start["models"])
    if start["by_fold"]:
        return f"Each fold began with the weights of the same fold of the run {run}, which never saw its rows."
    of = f"the mean of {len(models)} models" if len(models) > 1 else f"the model {models[0]}"
    return (
        f"Training began with the weights of the run {run} ({of}), which was trained on none of the texts that are "
        "scored here."
    )


def teachers_sentence(distill: Distill) -> str:
    """Whom a run learnt from, and how."""
    names = ", ".join(short_name(name) for name in distill.teachers)
    if distill.hard is not None:
        return f"{names}; labels of probability {distill.hard:g} or more for texts without labels"
    return f"{names}; weight {distill.weight:g}, temperature {distill.temperature:g}"


def share_of_test(run: RunFolder, scores: Scores) -> dict[str, Any] | None:
    """What was decided for the test rows, beside the training rows; None for a run without any."""
    if scores.test is None:
        return None
    rows, positives = scores.test.rows, scores.test.positives
    train = run.y_true.mean(axis=0).tolist()
    labels = [
        {"label": name, "positives": positives[name], "share": positives[name] / max(rows, 1), "train": share}
        for name, share in zip(run.label_names, train, strict=True)
    ]
    return {"rows": rows, "labels": labels}


def score_sentence(metrics: Scores) -> str:
    """The score in one sentence, with its interval and everything that qualifies it."""
    scores, strategy = metrics.cross_fitted, metrics.strategy
    task = task_of(metrics.task, metric=metrics.metric, metric_beta=metrics.metric_beta)
    metric, judged = task.metric, scores.judged
    if strategy == "argmax":
        how = "the most probable class"
    elif strategy == "fixed":
        how = "fixed thresholds"
    elif strategy == "prevalence":
        how = "each label's share of positives in the other rows for its threshold"
    else:
        how = f"{task.tuned} on the other folds"
        if scores.over == "parts":
            how = f"{task.weights_word} for each of {scores.n_parts} parts of them tuned on the other parts"
        how += task.aims.get(strategy, "")
    rows = metrics.rows_scored
    where = f"out of fold on {rows} rows" if metrics.n_splits > 1 else f"on {rows} held-out rows"
    if judged is None:
        sentence = f"{task.metric_name} is undefined {where}: no label has both positives and negatives there."
    else:
        value = (
            f"{task.metric_name} {judged.estimate:.4f} (95 % interval {judged.low:.4f} to {judged.high:.4f}) {where}"
        )
        of_scores = "of ranks" if metric.name != "log_loss" else "of probabilities, less is better"
        untuned = metrics.untuned.judged
        assert untuned is not None
        sentence = f"{value}, {of_scores}." if metric.of_scores else f"{value}, {how}; untuned {untuned.estimate:.4f}."
    told = task.in_sentence
    if metric.name != "macro_f1":
        told = {"macro_f1": task.headline, **{key: name for key, name in told.items() if key != metric.name}}
    for key, name in told.items():
        sentence += f" {name} {getattr(scores, key):.4f}, untuned {getattr(metrics.untuned, key):.4f}."
    if metrics.tuning_gain is not None:
        of = f" {metric.for_thresholds.title}" if metric.of_scores else ""
        sentence += f" {tuning_sentence(metrics.tuning_gain, metrics.untuned_strategy, of)}"
    finished, n_splits = len(metrics.folds_finished), metrics.n_splits
    if finished < n_splits:
        sentence += f" Partial: {finished} of {n_splits} folds."
    if metrics.unparsable_answers:
        sentence += f" {metrics.unparsable_answers} of {metrics.answers} answers could not be read as labels."
    if metrics.epochs_pending:
        sentence += " Of the last epoch so far: epochs are chosen when all folds are done."
    if metrics.optimistic:
        sentence += f" {OPTIMISTIC} (train.select: scored_fold)."
    return sentence


def tuning_sentence(gain: Interval, untuned: str | None, of: str = "") -> str:
    """What tuning gains over untuned decisions, and what may be done where that is nothing.

    Parameters
    ----------
    untuned : the strategy that decides as untuned; None where there is none
    of : the metric, where it is not the one just told
    """
    sentence = (
        f"Tuning gains {gain.estimate:+.4f}{of} over untuned "
        f"(95 % interval of the paired difference {gain.low:+.4f} to {gain.high:+.4f})"
    )
    if gain.low > 0:
        return f"{sentence}."
    shown = "WARNING: tuned decisions are worse" if gain.high < 0 else "these rows show no gain"
    advice = "" if untuned is None else f"; lora-cls tune RUN --strategy {untuned} decides without tuning"
    return f"{sentence}: {shown}{advice}."


def table_score_sentences(scores: TableScores) -> list[str]:
    """A run's score on a labelled table, how far it is from the out-of-fold one, and which rows it was trained on."""
    task = task_of(scores.task, metric=scores.metric, metric_beta=scores.metric_beta)
    if scores.exported:
        who = "by the exported model"
    elif scores.models == "refit":
        who = "by the model of all rows (refit)"
    else:
        who = f"by {scores.n_models} folds' models together" if scores.n_models > 1 else "by one fold's model"
    how = "" if task.metric.of_scores else f" at the shipped {task.thresholds_word}"
    where = f"on {scores.rows:,} rows of {scores.table}, {who}{how}"
    judged = scores.scores.judged
    if judged is None:
        said = [f"{task.metric_name} is undefined {where}: no label has both positives and negatives there."]
    else:
        said = [f"{task.metric_name} {_with_interval(judged)} {where}."]
    if scores.seen:
        rows = []
        for row in scores.seen:
            about = [row.place, None if row.training_row is None else f"training row {row.training_row}"]
            rows.append(f"{row.id} ({', '.join(part for part in about if part) or 'seen before this training'})")
        without = scores.unseen.judged if scores.unseen is not None else None
        rest = "No other rows are left to score" if without is None else f"Without them {_with_interval(without)}"
        said.append(
            f"WARNING: the run was trained on the texts of {len(rows):,} of these rows, which may flatter: "
            f"{shorten(rows)}{f' (all in {TABLE_ROWS})' if len(rows) > 10 else ''}. {rest}."
        )
    elif scores.seen is not None:
        said.append("None of these texts stands in the training rows.")
    gap, own = scores.minus_out_of_fold, scores.out_of_fold
    if gap is not None and own is not None:
        verdict = "no difference shows" if gap.low <= 0 <= gap.high else ""
        verdict = verdict or ("these rows went worse" if gap.high < 0 else "these rows went better")
        turned = " (turned, so that above 0 is better)" if task.metric.less_is_better else ""
        which = "These rows" if not scores.seen else "The other rows"
        said.append(
            f"{which} less the score out of fold, {own.estimate:.4f}: {gap.estimate:+.4f}{turned} (95 % interval "
            f"{gap.low:+.4f} to {gap.high:+.4f}, two independent sets of rows): {verdict}."
        )
    elif scores.exported:
        said.append("An export has no out-of-fold score to compare with.")
    return said + scores.notes


def other_metrics(scores: TableScores) -> list[tuple[str, float]]:
    """Names and values of the metrics that a run is not judged by, where they are defined."""
    beta, exclusive = scores.metric_beta, scores.task == "single_label"
    return [
        (Metric(name, beta if name == "f_beta" else None, exclusive).title, value)  # type: ignore[arg-type]
        for name, value in scores.metrics.items()
        if name != scores.metric and value is not None
    ]


def _with_interval(found: Interval) -> str:
    return f"{found.estimate:.4f} (95 % interval {found.low:.4f} to {found.high:.4f})"


def cost_sentence(info: RunInfo) -> str:
    """What a run took: phases, memory, speed."""
    sentence = ", ".join(
        f"{PHASES[phase]} {value / 60:.1f} min"
        for phase, value in sorted(info.seconds.items(), key=lambda phase: -phase[1])
        if value >= 3 or phase in ("train", "predict")
    )
    sentence = f"{sentence[:1].upper()}{sentence[1:]}"
    if info.peak_memory_bytes:
        sentence += f", peak memory {info.peak_memory_bytes / 2**30:.2f} GiB"
    unit = "rows"
    if info.train_rows_per_second is not None:
        per_row = info.pieces_per_row
        if per_row is not None:
            sentence += f", {per_row:.2f} pieces per row"
            unit = "pieces"
        sentence += (
            f", trained {info.train_rows_per_second:.0f} {unit}/s, {info.train_tokens_per_second:.0f} tokens/s, "
            f"{info.padding_share:.0%} padding"
        )
    if info.predict_rows_per_second is not None:
        sentence += f", predicted {info.predict_rows_per_second:.0f} {unit}/s"
    return f"{sentence}."


def reused_sentence(reused: dict[str, int]) -> str:
    """What was found in the cache, and of how many texts."""
    return "Reused: " + ", ".join(REUSED[name].format(number) for name, number in reused.items()) + "."


def lengths_sentence(what: str, lengths: dict[str, Any]) -> str:
    """Mean, median, 95th percentile and maximum of something counted per text."""
    return (
        f"{what}: mean {lengths['mean']:.1f}, median {lengths['median']:.0f}, 95 % up to {lengths['p95']:.0f}, "
        f"longest {lengths['max']}."
    )


def memory_sentence(memory: dict[str, Any], rows: int) -> str:
    """The estimate of memory in one sentence, with its parts."""
    gib = {key: f"{value / 2**30:.2f}" for key, value in memory.items() if isinstance(value, int)}
    where = {"cpu": "on this CPU", "cuda": "on this GPU"}.get(memory["device"], f"on this machine ({memory['device']})")
    return (
        f"Training takes about {gib['total']} GiB {where}, estimated: base {gib['base']}, adapters and head "
        f"{gib['adapters']}, gradients and optimizer {gib['optimizer']}, activations of {rows} texts of "
        f"{memory['length']} tokens {gib['activations']}, libraries {gib['libraries']}."
    )


def time_sentence(estimate: Estimate) -> str:
    """The estimate of minutes by phase, and what was measured for it."""
    phases = ", ".join(f"{PHASES[name]} {value / 60:.1f}" for name, value in estimate.seconds.items() if value >= 1)
    counts = ((estimate.folds, "fold"), (estimate.epochs, "epoch"))
    folds, epochs = (f"{n} {word}{'s' * (n > 1)}" for n, word in counts)
    lengths = (
        f"{estimate.lengths[0]} to {estimate.lengths[-1]}" if len(estimate.lengths) > 1 else str(estimate.lengths[0])
    )
    peak = estimate.peak_memory_bytes
    took = f"; they took {peak / 2**30:.2f} GiB at their peak" if peak else ""
    return (
        f"The run takes about {estimate.total / 60:.1f} minutes here ({folds} of {epochs}): {phases}. Measured in "
        f"{estimate.measuring_seconds:.0f} s: {estimate.steps} training steps on batches of {lengths} tokens "
        f"({estimate.train_rows_per_second:.0f} rows/s over all batches), {estimate.predictions} batches predicted "
        f"({estimate.predict_rows_per_second:.0f} rows/s){took}. Thresholds and scores come on top."
    )


def blend_ways(about: BlendInfo) -> tuple[list[str], Cells]:
    """Header and rows: every way, its score and its paired gain over the best single run."""
    rows = [
        [
            f"{way.how}{' (written)' if way.how == about.how else ''}",
            interval_text(way.metric_interval or way.macro_f1_interval),
            interval_text(way.gain_over_best, "+"),
            _mark(way.gain_over_best, "no gain shown"),
        ]
        for way in about.ways
    ]
    return ["way", f"{about.metric_title} (95 %)", f"gain over {about.best_single} (95 %)", ""], rows


def blend_runs(about: BlendInfo) -> tuple[list[str], Cells]:
    """Header and rows: every run alone, and what the chosen blend has over the same blend without it."""
    rows = [
        [
            run.name,
            f"{run.macro_f1 if run.metric is None else run.metric:.4f}",
            interval_text(run.adds, "+"),
            _mark(run.adds, "adds nothing that shows"),
        ]
        for run in about.runs
    ]
    return ["run", f"{about.metric_title} alone", f"adds to {about.how} (95 %)", ""], rows


def _mark(gain: Interval, within_chance: str) -> str:
    return "" if gain.low > 0 else "worse" if gain.high < 0 else within_chance


def gain_sentence(about: BlendInfo) -> str:
    """What the written way gains, with a warning where that is within chance."""
    gain = next(way.gain_over_best for way in about.ways if way.how == about.how)
    sentence = (
        f"Blended by {about.how}, {len(about.runs)} runs gain {gain.estimate:+.4f} {about.metric_title} over "
        f"{about.best_single} alone (95 % interval {gain.low:+.4f} to {gain.high:+.4f})."
    )
    if gain.high < 0:
        return f"{sentence} WARNING: the blend is worse than that run."
    if gain.low <= 0:
        return f"{sentence} WARNING: the interval includes zero: these rows show no gain."
    return sentence


def interval_text(values: Interval, sign: str = "") -> str:
    return f"{values.estimate:{sign}.4f} [{values.low:{sign}.4f}, {values.high:{sign}.4f}]"
