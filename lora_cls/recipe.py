"""The typed description of a run: loading, overriding and checking recipes.

A recipe is a YAML file (or the name of a shipped one). Every default lives here and nowhere else. All mistakes of a
recipe are reported at once, each with the path of its field.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from lora_cls.choices import (
    BlendHow,
    ClassStrategy,
    Combination,
    LabelStrategy,
    MetricName,
    PieceCombination,
    ScoreMetric,
    ThresholdStrategy,
)
from lora_cls.errors import RecipeError, did_you_mean, shown
from lora_cls.yaml_text import LONGEST, Plain, YamlError, read_yaml, write_yaml

# In a wheel the recipes lie inside the package; in a checkout, beside it.
SHIPPED = Path(__file__).parent / "shipped_recipes"
if not SHIPPED.is_dir():
    SHIPPED = Path(__file__).parent.parent / "recipes"


TaskName = Literal["multi_label", "single_label", "binary"]
SweepObjective = Literal[MetricName, "loss"]
HeadKind = Literal["linear", "label_tokens", "label_names", "generate"]
# naming the labels before made their scores worse: they are copied
DEFAULT_PROMPTS: dict[HeadKind, str] = {"label_tokens": "Text: {text}\nLabel:"}


MANY = 10**9  # more rows, pieces or n-grams than there are
LARGEST_SEED = 2**32 - 1  # the largest that numpy and scikit-learn take
NgramLength = Annotated[int, Field(ge=1, le=20)]
LayerNumber = Annotated[int, Field(ge=0, le=10_000)]
PositiveNumber = Annotated[float, Field(ge=1e-6, le=1e6)]
LabelWeight = Annotated[float, Field(le=1e6)]  # above 0, as the loss checks with the number of labels
COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{,199}")
HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)?")
PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
TRACKED_NAME = re.compile(r"[^\W_]([\w .,+=@()&-]*[\w,+=@()&-])?")


class Section(BaseModel):
    """Part of a recipe: read-only once loaded, and an unknown field is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=False, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Backbone(Section):
    """The pretrained model that is adapted."""

    name_or_path: str = Field(min_length=1, max_length=4096)
    """A hub id, a local folder, a GGUF file, or `package:NAME` for a model that an installed Python package carries."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null takes its main branch."""
    num_hidden_layers: int | None = Field(default=None, ge=1, le=10_000)
    """Keep only so many layers, from the lowest (and the final norm): middle layers often classify as well as the
    last. Null keeps all."""
    start_from: str | None = Field(default=None, min_length=1, max_length=4096)
    """Another run on the same base, whose weights training begins with, beside a fresh head: a run folder (the mean of
    its finished folds' models), one model of it (`RUN/refit`, `RUN/fold-00`), or an export. LoRA begins with adapters
    of the same modules, full fine-tuning with a fully fine-tuned or merged model. Refused where that run was trained on
    texts that this one is scored on, unless every fold can begin with the same fold's model, which never saw them. Null
    begins with the base."""
    bidirectional: bool = False
    """A decoder without its causal mask: every token sees the whole text, as in an encoder (BehnamGhader et al. 2024,
    "LLM2Vec"), within the window where a layer has one; `head.pooling: mean` is what goes with it. Refused when the
    model is loaded where it changes nothing (encoders), or takes no effect."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of the frozen base and of the computation; `auto` measures what this device does well."""
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """`auto` times what the model supports on real rows and keeps the faster."""
    trust_remote_code: bool = False
    """Runs Python code from the model's repository. Only for models that need it, with `revision` pinned to a commit.
    In the recipe of a run folder it is not obeyed: the command's `--trust-remote-code` says it."""

    @model_validator(mode="after")
    def _named(self) -> Backbone:
        name = self.name_or_path
        problems = []
        if any(unicodedata.category(character) == "Cc" for character in name):
            problems.append("name_or_path: it must not hold control characters.")
        if any(unicodedata.category(character) == "Cc" for character in self.start_from or ""):
            problems.append("start_from: it must not hold control characters.")
        if name.startswith("package:") and not PACKAGE.fullmatch(name.removeprefix("package:")):
            problems.append(
                f"name_or_path: {shown(name.removeprefix('package:'))} is no name of a Python package: letters, "
                "digits, '.', '-' and '_'."
            )
        if self.revision is not None and not REVISION.fullmatch(self.revision):
            problems.append(
                f"revision: {shown(self.revision)} is no branch, tag or commit: letters, digits, '.', '/', '-', '_'."
            )
        # what a local folder holds is not fixed by any revision, and one that is named here is the user's own
        on_hub = HUB_ID.fullmatch(name) and not os.path.isdir(name)
        if self.trust_remote_code and on_hub and not COMMIT.fullmatch(self.revision or ""):
            problems.append(
                "trust_remote_code runs code from the model's repository: pin revision to a commit, its 40 digits "
                "and letters; a branch or a tag may change."
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Quantization(Section):
    """How bitsandbytes stores the frozen base."""

    load_in_4bit: bool = False
    """The linear layers of the blocks in 4 bits, computed in `backbone.dtype`: with adapters, QLoRA."""
    load_in_8bit: bool = False
    """The same layers in 8 bits (LLM.int8). Exactly one of the two is true."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """The 16 values that 4 bits stand for: `nf4` spaces them as weights of a normal distribution lie, `fp4` as a float
    of 4 bits."""
    bnb_4bit_use_double_quant: bool = True
    """With 4 bits: quantize the scales of the blocks, too, which saves about 0.4 bits per weight."""

    @model_validator(mode="after")
    def _one_of(self) -> Quantization:
        if self.load_in_4bit == self.load_in_8bit:
            raise ValueError("set exactly one of load_in_4bit and load_in_8bit to true, or remove the section.")
        return self


class Head(Section):
    """How hidden states become scores."""

    kind: HeadKind = "linear"
    """`linear`: a fresh linear layer in fp32 over a pooled hidden state. `label_tokens`: the same layer at the end of a
    prompt, each label's row started from the output embedding of the label's own tokens. `label_names`: an encoder
    reads the labels' names before the text, and each label is scored where its own name stands (SpanEmo: Alhuzali and
    Ananiadou 2021). `generate`: an instruction-tuned decoder learns to write the labels, and is asked how probable each
    one was."""
    pooling: Literal["last_token", "mean", "cls"] = "last_token"
    """Which positions the head reads, by attention mask: the last token, the mean of all, or the first token. Of
    `label_names` the mean of each name's tokens."""
    learning_rate: float | None = Field(default=None, gt=0)
    """The head's own learning rate; null takes `train.learning_rate`."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the pooled hidden state that is set to 0 at random while training."""
    prompt: str | None = None
    """What the model reads, with `{text}` where the text stands and `{labels}` for the labels' names. Null takes the
    default of the kind: none for `linear`."""
    label_words: dict[str, str] | None = None
    """Words for labels whose column names are none (`{"tox_sev": "severely toxic"}`); read by `label_tokens`,
    `label_names` and `generate`. Null takes the column names."""

    @model_validator(mode="after")
    def _prompted(self) -> Head:
        problems = []
        if self.kind == "label_tokens" and self.pooling != "last_token":
            problems.append(
                f"label_tokens reads what follows the prompt: pooling must be last_token, not {self.pooling}."
            )
        if self.kind == "label_names" and self.pooling != "mean":
            problems.append(
                f"label_names reads the mean over each name's tokens: pooling must be mean, not {self.pooling}."
            )
        if self.kind == "label_names" and self.prompt is not None:
            problems.append(
                "prompt has no meaning for kind: label_names, which puts the labels' names before the text: say what "
                "they are called in label_words."
            )
        if self.prompt is not None and self.prompt.count("{text}") != 1:
            problems.append("prompt must hold {text} exactly once.")
        if self.label_words is not None and self.kind == "linear":
            problems.append("label_words has no meaning for kind: linear.")
        if self.kind == "generate":
            unused = [name for name in ("pooling", "learning_rate", "dropout") if name in self._changed()]
            problems += [f"{name} has no meaning for kind: generate, which has no layer of its own." for name in unused]
        if problems:
            raise ValueError(" ".join(problems))
        return self

    @property
    def default_prompt(self) -> str | None:
        """What stands for `prompt: null`; None where the text stands alone, and for `generate`, which words it by the
        task."""
        return DEFAULT_PROMPTS.get(self.kind)

    def _changed(self) -> list[str]:
        return [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]


class Lora(BaseModel):
    """PEFT's `LoraConfig`: any of its fields may stand here (checked against the installed PEFT)."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False, use_attribute_docstrings=True)

    r: int = Field(default=16, ge=1, le=100_000)
    """Rank of the adapters: the update of an m x n matrix has r x (m + n) weights."""
    lora_alpha: float = Field(default=32, gt=0, le=1_000_000)
    """Updates are multiplied by lora_alpha / r (with PEFT's `use_rslora` by lora_alpha / sqrt(r))."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's input that is set to 0 at random while training."""
    target_modules: Literal["all-linear"] | str | list[str] = "all-linear"
    """`all-linear` (every linear layer of the transformer blocks), a list of module names, or a regular expression."""
    layers_to_transform: list[LayerNumber] | None = None
    """Indices of the layers that get adapters; null is all."""
    top_layers: float | None = Field(default=None, gt=0, le=1)
    """Adapters in this share of the layers only, the upper ones. What lies below is then computed once per text, and
    not in every epoch of every fold; `benchmarks/results/` has what it costs in macro-F1. Null is all."""
    init_lora_weights: Literal[True, "gaussian"] = True
    """How adapters start: PEFT's own way (`true`) or a normal distribution; either way they change nothing yet.
    PEFT's other ways change the base's weights, or ignore the precision of adapters."""

    @model_validator(mode="before")
    @classmethod
    def _known_to_peft(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        extra = {str(name): given for name, given in value.items() if name not in cls.model_fields}
        problems = []
        if value.get("top_layers") is not None and value.get("layers_to_transform") is not None:
            problems.append("give either top_layers or layers_to_transform.")
        problems += [f"{name} is set by lora_cls itself: remove it." for name in extra if name in SET_BY_US]
        checked = {}
        extra = {name: given for name, given in extra.items() if name not in SET_BY_US}
        types = _peft_types() if extra else {}
        for name, given in extra.items():
            # such methods change the base's weights, need data of their own, or are no adapter that can be averaged
            if name == "use_bdlora" or name.endswith("_config"):
                problems.append(f"{shown(name)} cannot be set in a recipe: remove it.")
                continue
            if name not in types:
                hint = field_hint(name, "lora") or did_you_mean(name, types)
                problems.append(f"{shown(name)} is no field of PEFT's LoraConfig.{hint}")
                continue
            try:
                checked[name] = TypeAdapter(types[name]).validate_python(given)
            except ValidationError as error:
                first = error.errors()[0]["msg"].removeprefix("Value error, ").rstrip(".")
                problems.append(f"{name}: {first}. Got {shown(given)} instead.")
        if problems:
            raise ValueError("\n".join(problems))
        return {**value, **checked}


# PEFT's fields that carry the head or the task, or that say where code or weights come from
SET_BY_US = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
)


def _peft_types() -> dict[str, Any]:
    """Types of the fields of PEFT's `LoraConfig` that a recipe may hold; narrower where PEFT says only dict."""
    from dataclasses import fields
    from typing import get_type_hints

    from peft import LoraConfig  # seconds to import: only where a field outside the common ones is named

    hints = get_type_hints(LoraConfig)
    known = {field.name: hints[field.name] for field in fields(LoraConfig) if field.name not in SET_BY_US}
    pattern = Annotated[str, AfterValidator(_pattern)]
    known["rank_pattern"] = dict[pattern, Annotated[int, Field(ge=1, le=100_000)]]
    known["alpha_pattern"] = dict[pattern, PositiveNumber]
    known["exclude_modules"] = pattern | list[str] | None
    return known


def _pattern(text: str) -> str:
    if reason := not_a_pattern(text):
        raise ValueError(f"It is no regular expression: {reason}")
    return text


def not_a_pattern(text: str) -> str | None:
    """Why a text is no regular expression; None for one."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        return str(error) or type(error).__name__
    return None


class Tfidf(Section):
    """The classical floor: TF-IDF features and one balanced logistic regression per label (scikit-learn)."""

    word_ngram_range: tuple[NgramLength, NgramLength] = (1, 2)
    """Fewest and most words in an n-gram (`ngram_range` of scikit-learn's `TfidfVectorizer`)."""
    char_ngram_range: tuple[NgramLength, NgramLength] = (3, 5)
    """Fewest and most characters in an n-gram inside words (`analyzer="char_wb"`)."""
    min_df: int = Field(default=2, ge=1, le=MANY)
    """N-grams that stand in fewer training texts than this are left out."""
    sublinear_tf: bool = True
    """Count an n-gram that a text repeats tf times as 1 + log(tf)."""
    C: float = Field(default=1.0, ge=1e-6, le=1e6)
    """Inverse strength of the regression's regularisation: smaller is stronger."""
    class_weight: Literal["balanced"] | None = "balanced"
    """`balanced` weights the classes of each regression inversely to their rows; null counts every row alike."""

    @model_validator(mode="after")
    def _ranges(self) -> Tfidf:
        wrong = [
            name
            for name in ("word_ngram_range", "char_ngram_range")
            if sorted(pair := getattr(self, name)) != list(pair)
        ]
        if wrong:
            raise ValueError(f"{' and '.join(wrong)}: the first number must not be above the second.")
        return self


class Blend(Section):
    """Finished runs that answer together. `lora-cls blend` writes this section; there is nothing in it to train."""

    runs: list[str] = Field(min_length=2)
    """Run folders, relative to the blend's own."""
    how: BlendHow = "mean_logit"
    """Mean probability; sigmoid of the mean log-odds; mean rank of the probability among the run's out-of-fold ones;
    the mean log-odds with one weight per run, tuned for macro-F1; or a logistic regression per label on the log-odds of
    the runs. Means of log-odds are those of log-probabilities for single_label."""


class Adapt(Section):
    """Training of the base on texts alone, once, before any fold (Gururangan et al. 2020, "Don't stop pretraining"): on
    those of the training and test tables and of `extra_texts`, never on labels. Encoders learn to fill in masked
    tokens, decoders to foretell the next one. All folds then stand on that base, which is kept in the cache folder."""

    extra_texts: str | None = None
    """More texts of the same kind: a table with the text columns of the training table, or a `.txt` file with a text
    per line. Null: none."""
    num_train_epochs: int = Field(default=3, ge=1, le=100_000)
    """How many times the texts are gone through."""
    per_device_train_batch_size: int = Field(default=32, ge=1, le=1_000_000)
    """Texts per step; long ones are read to their end, in pieces of at most `data.max_length` tokens."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Learning rate of AdamW at its highest, from which it goes down to 0 in a line."""
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW, for trained matrices; biases and norms have none."""
    lora_r: int | None = Field(default=None, ge=1, le=100_000)
    """Train adapters of this rank in all linear layers of the blocks and add them to the base's weights at the end.
    Null trains every weight: more memory, as the weights are in 32 bits, with AdamW's moments beside them."""
    mask_probability: float = Field(default=0.15, gt=0, lt=1)
    """Encoders: share of each text's tokens that are to be filled in, one at least. Decoders do not read it."""
    mask_with: Literal["mixed", "mask"] = "mixed"
    """What stands for such a token: the mask for 80 %, another token for 10 %, itself for 10 %, as for BERT (`mixed`);
    or always the mask. Decoders do not read it."""
    seed: int = Field(default=42, ge=0, le=LARGEST_SEED)
    """Draws the order of texts, what is masked, dropout, and the 5 % of the texts that the loss is noted on. Apart from
    `train.seed`, so that runs with other seeds share the base."""


class Distill(Section):
    """Finished runs that are learnt from beside the labels. In every fold only the teachers' models of the same fold
    are asked: they never saw the rows that it holds out. Hinton et al. 2015, "Distilling the knowledge in a neural
    network"."""

    teachers: list[str] = Field(min_length=1, max_length=100)
    """Run folders on the same rows, labels and folds (`--fold-table RUN/folds.csv`); what they say is averaged as the
    mean of their log-odds. A blend may be one, by `mean_logit` or `mean_proba`."""
    weight: float = Field(default=0.5, gt=0, le=1)
    """Share of the loss that is cross-entropy to the teachers' probabilities, on training rows and on those without
    labels; the rest is the recipe's loss on the labels. With 1 no label is learnt from."""
    temperature: float = Field(default=1.0, ge=0.1, le=100)
    """Divides the log-odds of teachers and student: above 1 their probabilities are softer. That part of the loss is
    multiplied by its square."""
    unlabelled: str | None = None
    """A table of further texts to learn from, which needs no labels; those of the test table are learnt from anyway.
    Texts that stand in the training table are left out. Null: no further texts."""
    hard: float | None = Field(default=None, gt=0.5, lt=1)
    """Pseudo-labels in place of soft answers: a row without labels becomes a training row like any other where the
    teachers give each label, or its opposite, at least this probability (of classes: the greatest one); other such rows
    are left out. Training rows then keep to their labels alone, and `weight` and `temperature` have no meaning. Null
    learns from soft answers."""

    @model_validator(mode="after")
    def _soft_or_hard(self) -> Distill:
        if self.hard is not None:
            soft = [name for name in ("weight", "temperature") if getattr(self, name) != _default(Distill, name)]
            if soft:
                raise ValueError(f"{' and '.join(soft)}: no meaning beside hard: remove either.")
        return self


def _default(section: type[Section], name: str) -> Any:
    return section.model_fields[name].default


class Data(Section):
    """Where the rows come from and how a row becomes a text."""

    train: str | None = None
    """The training table: CSV, TSV, JSON, Parquet or Excel, or `sample:NAME` for a file of the package's sample. Null
    where it is given beside the recipe, which counts more."""
    test: str | None = None
    """The table to predict, likewise; null and none beside the recipe: no submission."""
    sample_submission: str | None = None
    """A file whose ids and columns the submission copies; null takes the shape of the training table."""
    folds: str | None = None
    """A table of id and fold to use; null makes folds by `cv`."""
    id_column: str | None = None
    """The column of the rows' names. Null takes the column named `id` in any spelling of case, or the first of unique
    values whose name ends in `_id` or `ID`, or else the row number (`row-0`, ...)."""
    text_columns: list[str] | None = None
    """Columns of the text. Null takes the only column of free text; several are joined by a line break unless
    `text_template` is given."""
    text_template: str | None = None
    """A text made of columns, for example `"{title}\\n{body}"`: braces hold column names. Null joins `text_columns`."""
    label_columns: list[str] | None = None
    """Columns of the labels. Null takes the columns of the sample submission, or else the 0/1 columns that the test
    file lacks, or else its only column with few different values that the test file lacks. One column may hold names
    instead of 0/1."""
    label_delimiter: str | None = Field(default=None, min_length=1)
    """For one column that holds several labels as text, as in `joy, anger`: what stands between them, in the training
    table and in a submission. Null: a cell is one name."""
    group_column: str | None = None
    """Rows of one group stay in one fold (identical texts always do). Null: no groups."""
    ignore_columns: list[str] = []
    """Columns that are neither text nor label nor id."""
    split_column: str | None = None
    """A column that says which rows are held out (`validation`, `valid`, `val`, `dev`, `test`) instead of folds; the
    others (`train`, `training`) are only trained on. Null makes folds."""
    weight_column: str | None = None
    """A column of numbers, 0 or more: how much each training row counts in the loss and in its positive weights; scores
    count every row once. Null counts every row alike."""
    soft_labels: bool = False
    """Labels may be numbers between 0 and 1, as shares of annotators; scores take 0.5 and above as 1. Not for
    single_label, nor for a column of names."""
    extra_train: str | None = None
    """A table like the training table whose rows are only ever trained on: never held out, never scored. Rows whose
    text stands in the training table are left out. Null: no such rows."""
    max_rows: int | None = Field(default=None, ge=4, le=MANY)
    """Train and score on a stratified sample of so many training rows at most, drawn by `cv.random_state`; null takes
    all."""
    unescape: bool = False
    """Turn a backslash and an n, as some exports write line ends, into line ends (and \\r, \\t likewise)."""
    on_missing: Literal["error", "drop"] = "error"
    """Training rows with a missing label or text: stop and name them, or drop them and say how many."""
    max_length: int = Field(default=256, ge=4, le=10_000_000)
    """Longest input in tokens, special tokens and prompt included."""
    long_text: Literal["truncate", "head_tail", "chunk"] = "truncate"
    """What is read of a text longer than `max_length`: its start; start and end, half each; or all of it, in as few
    pieces of equal length as `max_length` allows."""
    chunk_stride: int = Field(default=0, ge=0, le=10_000_000)
    """Tokens that neighbouring chunks share."""
    chunk_combine: PieceCombination = "mean_logit"
    """How the chunks of a text answer together: sigmoid of the mean log-odds, mean probability, or the greatest."""
    max_chunks: int | None = Field(default=None, ge=1, le=MANY)
    """Read no more than so many chunks of a text, evenly spread over it; null reads all."""

    @model_validator(mode="after")
    def _one_division(self) -> Data:
        if self.folds and self.split_column:
            raise ValueError("give either folds or split_column: both say which rows are held out.")
        return self

    @model_validator(mode="after")
    def _strides(self) -> Data:
        if self.chunk_stride * 2 > self.max_length:
            raise ValueError(
                f"chunk_stride must be at most half of max_length ({self.max_length}). Got {self.chunk_stride} instead."
            )
        return self


class Train(Section):
    """Optimisation, in Hugging Face's names."""

    num_train_epochs: int = Field(default=3, ge=1, le=100_000)
    """How many times each fold's training rows are gone through."""
    per_device_train_batch_size: int = Field(default=16, ge=1, le=1_000_000)
    """Texts per batch; pieces of texts with `data.long_text: chunk`, so that memory does not grow with the texts."""
    per_device_eval_batch_size: int = Field(default=32, ge=1, le=1_000_000)
    """The same for prediction; halved by itself where the memory is full."""
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=1_000_000)
    """Batches that make one step of the optimizer: the same step as one batch so many times larger, in less memory."""
    learning_rate: float = Field(default=2e-4, gt=0)
    """Learning rate of AdamW at its highest; `head.learning_rate` may give the head another."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW, for trained matrices; biases and norms have none."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from 0."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """The learning rate after the warm-up: down to 0 in a line or along a cosine, or as it is."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients of all trained weights together are scaled down to this norm where theirs is greater."""
    gradient_checkpointing: bool = False
    """Less memory for about a third more time."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Evaluate and save an exponential moving average of all trained weights, which after every step keeps this share
    of itself (0.99), and after t steps at most (1 + t) / (10 + t). Null: the weights as they are trained."""
    average_epochs: int = Field(default=1, ge=1, le=100_000)
    """Save the mean of the weights at the ends of the last so many epochs (with `ema_decay` of their moving averages),
    which takes `select: last`. 1 saves the last epoch's."""
    seed: int = Field(default=42, ge=0, le=LARGEST_SEED)
    """Draws the start of adapters and head, the order of rows, dropout, and the rows that `select: inner` holds
    back."""
    select: Literal["last", "inner", "cross_fitted", "scored_fold"] = "last"
    """Which epoch is kept: the last; the best on a slice of the fold's training rows; the best on the other folds'
    curves; or the best on the very rows that are then scored, which marks every score as optimistic."""
    inner_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the fold's training rows that `select: inner` holds back."""
    select_by: Literal["macro_f1", "metric", "loss", "loss_within_margin"] = "macro_f1"
    """What `select: inner` and `scored_fold` compare epochs by: the greatest macro-F1 (untuned); the best value of the
    recipe's `metric` (of untuned decisions, or of the corrected probabilities); the lowest loss (the recipe's, without
    label smoothing; of `head.kind: generate` the cross-entropy of its labels' scores); or the lowest loss among the
    epochs whose macro-F1 lies within `select_margin` of the best."""
    select_margin: float = Field(default=0.01, ge=0, lt=1)
    """For `loss_within_margin`: by how much macro-F1 may lie below the best epoch's."""

    @model_validator(mode="after")
    def _select_by_applies(self) -> Train:
        if self.select_by != "macro_f1" and self.select not in ("inner", "scored_fold"):
            raise ValueError(f"select_by: {self.select_by} has no meaning for select: {self.select}.")
        return self

    @model_validator(mode="after")
    def _epochs_to_average(self) -> Train:
        problems = []
        if self.average_epochs > self.num_train_epochs:
            problems.append(
                f"average_epochs: there are only {self.num_train_epochs} epochs (num_train_epochs). Got "
                f"{self.average_epochs} instead."
            )
        if self.average_epochs > 1 and self.select != "last":
            problems.append(
                f"average_epochs: the mean of the last epochs leaves no epoch to choose: set select: last (now "
                f"{self.select}), or average_epochs: 1; ema_decay goes with any select."
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Loss(Section):
    """One binary loss per label, with one positive weight per label; for single_label one loss over the softmax, with
    one weight per class. Papers: see `lora_cls.training.losses`."""

    name: Literal["bce", "focal", "asymmetric", "distribution_balanced"] = "bce"
    """Cross-entropy; `focal`, in which rows that are right already count less; `asymmetric`, which does that for
    positives and negatives apart; or `distribution_balanced`, for many labels of which many are rare: rows weigh by
    which labels occur together, and negatives are pushed less far. It takes `pos_weight: none`; probabilities are
    exact for `bce`, and approximate for the others."""
    focal_gamma: float = Field(default=2.0, ge=0, le=100)
    """`focal` and `distribution_balanced`: how much less rows count that are right already; 0 leaves that out."""
    gamma_positive: float = Field(default=0.0, ge=0, le=100)
    """`asymmetric`: how much less positives count that are right already; 0 is cross-entropy."""
    gamma_negative: float = Field(default=4.0, ge=0, le=100)
    """`asymmetric`: the same for negatives."""
    probability_margin: float = Field(default=0.05, ge=0, lt=1)
    """`asymmetric`: negatives below this probability count nothing."""
    db_alpha: float = Field(default=0.1, ge=0, le=100)
    """`distribution_balanced`: a row weighs alpha + sigmoid(beta * (r - mu)) for a label, where r, at most 1 for a
    label that it has, is smaller the rarer its other labels are."""
    db_beta: float = Field(default=10.0, gt=0, le=100)
    """`distribution_balanced`: beta of that weight, how steep it is."""
    db_mu: float = Field(default=0.9, ge=0, le=100)
    """`distribution_balanced`: mu of that weight, the r where it is steepest. Defaults are those for text (Huang et al.
    2021)."""
    db_lambda: float = Field(default=2.0, gt=0, le=100)
    """`distribution_balanced`: negatives' logits are multiplied by this and their loss divided by it: above 1, a
    negative that is right already is let alone sooner."""
    db_kappa: float = Field(default=0.05, ge=0, le=10)
    """`distribution_balanced`: this share of a label's log-odds in the training rows is added to its logit, in the loss
    alone."""
    label_weights: dict[str, PositiveNumber] | None = None
    """Factors on the whole loss of labels, by their names, as `{"joy": 2}`; labels that are not named weigh 1, and with
    null all do."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Set to s, targets 0 and 1 become s/2 and 1 - s/2; of K classes s/K and 1 - s + s/K."""
    pos_weight: Literal["balanced", "sqrt", "effective_number", "none"] | list[LabelWeight] = "balanced"
    """Negatives / positives within each label of the fold's training rows (`balanced`), its square root, the ratio of
    effective numbers, none, or one number per label. For single_label weights of classes: rows / (classes x rows of
    the class), scikit-learn's `balanced`; its square root; by inverse effective numbers; none, or one per class."""
    effective_number_beta: float = Field(default=0.999, gt=0, lt=1)
    """For `effective_number`: n rows count as (1 - beta^n) / (1 - beta), at most 1 / (1 - beta)."""
    max_pos_weight: float = Field(default=100.0, ge=1, le=1e6)
    """Cap for computed weights: one example of a very rare label must not drown all others."""


class CV(Section):
    """Iterative-stratified folds."""

    n_splits: int = Field(default=10, ge=2, le=10_000)
    """How many folds: as many models are trained, each on the rows of all other folds."""
    random_state: int = Field(default=42, ge=0, le=LARGEST_SEED)
    """Draws the folds, the sample of `data.max_rows`, and the parts of a fold that is scored alone."""


class Thresholds(Section):
    """How scores become decisions: positive at `y_score >= threshold`; for single_label the greatest
    `y_score / threshold`."""

    strategy: ThresholdStrategy | None = None
    """How thresholds are set. Null is `per_label` for several labels and for binary, `prior_adjusted` for single_label.
    One exact threshold per label, one for all, each label's share of positives (`prevalence`: no cut is chosen; with
    `loss.pos_weight: balanced` it is where logits change their sign), or `default`; `expected_f1`: per label the
    threshold of the greatest expected F1, by probabilities that all labels calibrate together; `auto`: between that and
    `per_label`, the nearer to the latter the more positives a label has; single_label: the most probable class, or the
    most probable after dividing by the class's share to a tuned power (0 is argmax)."""
    min_positives: int = Field(default=5, ge=1, le=MANY)
    """A label with fewer positives in the rows that tune keeps `default` (with `expected_f1` and `auto` a label without
    any); the share of a class with fewer rows is taken as if it had so many."""
    default: float = Field(default=0.5, ge=0, le=1)
    """The threshold that is not tuned: of `strategy: fixed`, and of labels with few positives."""

    @model_validator(mode="before")
    @classmethod
    def _without_objective(cls, values: Any) -> Any:
        """Recipes and run folders of before held `objective: macro_f1` here, the only one there was."""
        if isinstance(values, dict) and "objective" in values:
            if values["objective"] != "macro_f1":
                given = shown(values["objective"], quoted=False)
                raise ValueError(f"objective: it is a field of its own now: metric: {given}, beside thresholds.")
            values = {key: value for key, value in values.items() if key != "objective"}
        return values


class Prediction(Section):
    """How the folds' models answer together for rows that none of them saw."""

    combine: Combination = "mean_logit"
    """Mean probability, probability of the mean logit, or one vote per fold. Measured: means of probabilities are less
    extreme than one fold's, so thresholds carry over worse the fewer folds there are (`benchmarks/results/`)."""
    at_least_one: bool = False
    """Give every row at least its best label (the one furthest above, or least below, its threshold)."""


class Engine(Section):
    """How, not what: outside the identity of a run, but kept in run.json for its resume."""

    num_threads: int | None = Field(default=None, ge=1, le=1024)
    """CPU threads; null takes the physical cores this process may use."""
    prefix_cache: bool = True
    """Keep on disk what the layers below the lowest adapter say of each text, for all folds, epochs and later runs."""
    prefix_cache_gb: float = Field(default=20.0, gt=0, le=1e6)
    """How large that cache may get, over all runs; what was used least recently goes first."""
    short_steps: bool = True
    """On a CPU: adapters, attention, norms, dropout and the last layer in fewer steps: the same numbers but for their
    last digits, and for the masks that dropout draws. A run keeps to what it was started with."""
    token_cache: bool = True
    """Keep the token ids of large tables in the cache folder, at most 2 GB in all, for the next start."""
    resources: dict[Literal["num_cpus", "num_gpus", "memory_gb"], Annotated[float, Field(ge=0, le=1e6)]] | None = None
    """What each process of `--executor ray` takes of a node, as Ray counts it: cores (1 where nothing is said), GPUs
    (1 where the cluster has any; 0.5 lets two processes share one) and GiB of memory. Null says nothing."""
    deterministic: bool = False
    """On a GPU: take only kernels that give the same bits every time, so that a run that was stopped goes on to the
    bytes of one that was not. What it costs was not measured; where a model needs another kernel PyTorch says which,
    and ends. A CPU gives the same bits anyway."""


class Range(Section):
    """What a search may set a field to: from `low` to `high`, or one of `choices`."""

    low: float | None = None
    """The least value."""
    high: float | None = None
    """The greatest value."""
    log: bool = False
    """Whether equal ratios count alike, as they do for learning rates; else equal differences do."""
    step: float | None = Field(default=None, gt=0)
    """Distance of the values that are tried. Null is 1 for fields that are whole numbers, and any value for others."""
    choices: list[Any] | None = Field(default=None, min_length=1, max_length=1000)
    """The values that are tried, in place of `low` and `high`: numbers, words, true, false, null, or lists of them."""

    @model_validator(mode="after")
    def _one_of(self) -> Range:
        low, high = self.low, self.high
        if self.choices is not None:
            if low is not None or high is not None or self.log or self.step is not None:
                raise ValueError("give either choices, or low and high.")
            if len(set(map(repr, self.choices))) < len(self.choices):
                raise ValueError("choices holds a value twice.")
            return self
        if low is None or high is None:
            raise ValueError("give low and high, or choices.")
        if low >= high:
            raise ValueError(f"low must lie below high: {low:g} and {high:g}.")
        if self.log and low <= 0:
            raise ValueError(f"log needs values above 0: low is {low:g}.")
        if self.log and self.step is not None:
            raise ValueError("log and step cannot both be given.")
        return self


class Sweep(Section):
    """What `lora-cls sweep` tries, and how. Null takes a space that fits the recipe's kind. A run does not read it."""

    space: dict[str, Range] | None = Field(default=None, max_length=100)
    """Fields of the recipe and what to try, as `{"train.learning_rate": {low: 1.0e-5, high: 1.0e-3, log: true}}`. Null
    takes learning rates, epochs and batch size, with `lora` also its rank, and of `tfidf` its own fields."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """How settings are chosen: by what did well so far (Optuna's multivariate TPE), at random, or all combinations."""
    objective: SweepObjective | None = None
    """What is searched for, out of fold: a metric (of decisions, cross-fitted), or `loss`, the lowest log loss of the
    corrected probabilities. Null is the recipe's `metric`."""
    n_folds: int = Field(default=3, ge=1, le=10_000)
    """How many of the `cv.n_splits` folds each trial trains, the same for all trials."""
    stop_folds: bool = True
    """End a trial when the mean of its folds so far lies below the worst fold of the best trial."""
    stop_losses: bool = True
    """End a trial within its first fold when its loss stays far above what the better half of the trials had there."""
    confirm: int = Field(default=3, ge=0, le=1000)
    """How many of the best trials are trained again on fresh folds: that is the score that is stated. 0 states none."""
    keep_models: int = Field(default=3, ge=0, le=MANY)
    """So many of the best trials keep their models; all keep what they answered, which is what `compare` and `blend`
    read."""
    random_state: int = Field(default=42, ge=0, le=LARGEST_SEED)
    """Draws the settings that are tried."""


def _tracked_name(name: str) -> str:
    """A name that every tracker takes, and that may name a folder."""
    if TRACKED_NAME.fullmatch(name):
        return name
    raise ValueError(
        "Input should be a name of letters, digits, spaces and any of _-.,+=@()&, which starts with a letter or a "
        "digit and ends with no space or dot. A server's address and key are no part of a recipe: trackers read them "
        "from their own environment variables, as WANDB_API_KEY and MLFLOW_TRACKING_URI"
    )


def _local_folder(path: str) -> str:
    if "://" in path:
        raise ValueError("Input should be a folder of this machine, as runs/tracking")
    return path


TrackingFolder = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_local_folder)]
TrackedName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_tracked_name)]


class Tracking(Section):
    """Where a run is logged beside its folder. It is no part of a run's identity, and no failure of it ends one."""

    to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(default=[], max_length=4)
    """Trackers, by Accelerate's `tracking`; each needs its package, all are in the extra `tracking`."""
    project: TrackedName = "lora_cls"
    """The project, or experiment, that runs are listed under."""
    name: TrackedName | None = None
    """The run's name there; null takes that of its folder."""
    group: TrackedName | None = None
    """What its run is listed with, as the trials of one search are; null is none."""
    folder: TrackingFolder | None = None
    """Where trackers keep their files, unless their own environment variables say; null is `tracking` beside the run
    folder."""


def _combination_problems(backbone: bool, tfidf: bool, blend: bool, quantization: bool, lora: bool) -> list[str]:
    """What is wrong with the presence of sections, whatever is in them."""
    problems = []
    if backbone + tfidf + blend != 1:
        problems.append("give exactly one of 'backbone' (a transformer) and 'tfidf' (the classical baseline).")
    if quantization and not lora:
        problems.append("a quantized base cannot be fully fine-tuned: remove 'quantization', or set 'lora'.")
    if quantization and tfidf:
        problems.append("'quantization' has no meaning for 'tfidf'.")
    return problems


def _task_problems(recipe: Recipe) -> list[str]:
    """What contradicts the task; nothing while it is null."""
    task, strategy = recipe.task, recipe.thresholds.strategy
    problems = []
    if task == "single_label":
        if strategy in get_args(LabelStrategy):
            problems.append(
                f"thresholds.strategy: {strategy} decides labels one by one; task: single_label takes argmax or "
                "prior_adjusted."
            )
        if recipe.loss.name == "asymmetric":
            problems.append(
                "loss.name: asymmetric is made for labels that are mostly negative; task: single_label takes bce "
                "(cross-entropy over the classes) or focal."
            )
        if recipe.loss.label_weights:
            problems.append(
                "loss.label_weights: a class of task: single_label has one weight, which is loss.pos_weight: give it a "
                "list of numbers, one per class, and remove label_weights."
            )
        if recipe.data.soft_labels:
            problems.append(
                "data.soft_labels: task: single_label gives every row exactly one class: remove it, or set task: "
                "multi_label for shares of several labels."
            )
        if recipe.blend is not None and recipe.blend.how == "rank_mean":
            problems.append(
                "blend.how: rank_mean ranks rows label by label, and says nothing of which class of a row is greatest; "
                "task: single_label takes mean_proba, mean_logit, weights or stacking."
            )
        if recipe.prediction.at_least_one:
            problems.append("prediction.at_least_one: task: single_label gives every row exactly one class: remove it.")
    if task in ("single_label", "binary") and recipe.loss.name == "distribution_balanced":
        problems.append(
            f"loss.name: distribution_balanced weighs the labels of a row against each other, and task: {task} has one "
            "label per row; it takes bce or focal."
        )
    if task in ("multi_label", "binary") and strategy in get_args(ClassStrategy):
        problems.append(
            f"thresholds.strategy: {strategy} chooses one class per row; task: {task} takes per_label, global, "
            "prevalence, fixed, expected_f1 or auto."
        )
    if task in ("single_label", "binary") and recipe.data.label_delimiter is not None:
        problems.append(f"data.label_delimiter: task: {task} has one label per row: remove it, or the task.")
    if recipe.data.soft_labels and recipe.data.label_delimiter is not None:
        problems.append(
            "data.soft_labels: shares stand in one column per label, and data.label_delimiter splits one column of "
            "names: remove either."
        )
    return problems


def _metric_problems(recipe: Recipe) -> list[str]:
    """What has no meaning for the metric."""
    task, metric, problems = recipe.task, recipe.metric, []
    if metric == "f_beta" and recipe.metric_beta is None:
        problems.append("metric: f_beta needs metric_beta: how much more recall counts than precision, for example 2.")
    if metric != "f_beta" and recipe.metric_beta is not None:
        problems.append(f"metric_beta: metric: {metric} has none: remove it, or set metric: f_beta.")
    if recipe.sweep is not None and recipe.sweep.objective == "f_beta" and metric != "f_beta":
        problems.append("sweep.objective: f_beta is searched for where it is the metric: set metric: f_beta too.")
    if metric in ("micro_f1", "samples_jaccard"):
        if task == "single_label":
            problems.append(f"metric: {metric} of one class per row is the accuracy: take metric: accuracy.")
        if task == "binary":
            problems.append(
                f"metric: {metric} is of several labels; task: binary takes macro_f1 (the F1 of the positive class), "
                "f_beta, accuracy, mcc, roc_auc, average_precision or log_loss."
            )
    strategy = recipe.thresholds.strategy
    if strategy in ("expected_f1", "auto") and metric not in ("macro_f1", *get_args(ScoreMetric)):
        problems.append(
            f"thresholds.strategy: {strategy} looks for the greatest F1 of each label, and metric: {metric} is another "
            "aim: take per_label or global."
        )
    if metric in get_args(ScoreMetric) and recipe.prediction.combine == "vote":
        problems.append(
            f"prediction.combine: vote counts decisions, and metric: {metric} is of probabilities: take mean_logit or "
            "mean_proba."
        )
    if metric == "log_loss" and recipe.blend is not None and recipe.blend.how == "rank_mean":
        problems.append("blend.how: rank_mean makes ranks, no probabilities, and metric: log_loss is of probabilities.")
    return problems


def _loss_problems(loss: Loss) -> list[str]:
    """What contradicts the loss."""
    if loss.name != "distribution_balanced":
        return []
    problems = []
    if loss.pos_weight != "none":
        problems.append(
            "loss.pos_weight: distribution_balanced weighs rare labels itself, and takes no positive weights: set "
            f"loss.pos_weight: none (now {shown(loss.pos_weight, quoted=False)})."
        )
    if loss.label_smoothing:
        problems.append(
            "loss.label_smoothing: distribution_balanced reads its weights from the labels as they are: remove it."
        )
    return problems


class Recipe(Section):
    """All that defines a run. Either `backbone` (a transformer) or `tfidf` (the classical floor) is given; `blend`
    stands in runs that were made of other runs."""

    task: TaskName | None = None
    """`multi_label` (any number of labels per row), `single_label` (exactly one class per row) or `binary` (one 0/1
    column). Null takes what the label columns say, and prints it."""
    backbone: Backbone | None = None
    """Null beside `tfidf` or `blend`."""
    quantization: Quantization | None = None
    """Null leaves the base as it is."""
    head: Head = Head()
    lora: Lora | None = Lora()
    """Null is full fine-tuning."""
    tfidf: Tfidf | None = None
    """Null beside `backbone` or `blend`."""
    blend: Blend | None = None
    """Null beside `backbone` or `tfidf`."""
    adapt: Adapt | None = None
    """Null takes the base as it is."""
    data: Data = Data()
    train: Train = Train()
    loss: Loss = Loss()
    distill: Distill | None = None
    """Null learns from labels alone."""
    cv: CV = CV()
    metric: MetricName = "macro_f1"
    """What a run is judged by, in scikit-learn's names: thresholds, blend weights and searches are tuned for it, and
    scores state it first. Of decisions: `macro_f1`, `micro_f1`, `f_beta` (macro), `mcc` (Matthews' correlation, mean
    over the labels; of classes the one of all), `samples_jaccard` (mean over rows), `accuracy` (rows with every label
    right). Of ranks and probabilities, without thresholds: `roc_auc`, `average_precision` (both macro), `log_loss`; a
    submission then holds probabilities, and thresholds are tuned for macro-F1."""
    metric_beta: float | None = Field(default=None, gt=0, le=100)
    """`f_beta`: how much more recall counts than precision, for example 2. Null for the others."""
    thresholds: Thresholds = Thresholds()
    prediction: Prediction = Prediction()
    engine: Engine = Engine()
    sweep: Sweep | None = None
    """Null beside what a run needs no search for."""
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        problems = _combination_problems(
            *(getattr(self, name) is not None for name in ("backbone", "tfidf", "blend", "quantization", "lora"))
        )
        problems += _task_problems(self) + _metric_problems(self) + _loss_problems(self.loss)
        if self.adapt is not None and self.backbone is None:
            kind = "tfidf" if self.tfidf is not None else "blend"
            problems.append(f"adapt: {kind} has no base that could be trained on texts: remove it.")
        if self.head.kind == "generate" and (
            self.loss.name != "bce"
            or self.loss.label_smoothing
            or isinstance(self.loss.pos_weight, list)
            or self.loss.label_weights
        ):
            problems.append(
                "head.kind: generate learns the answer's tokens by cross-entropy: loss.name, loss.label_smoothing, "
                "loss.label_weights and numbers in loss.pos_weight have no meaning for it. Remove them."
            )
        if self.tfidf is not None:
            given = {
                "train.ema_decay": self.train.ema_decay is not None,
                "train.average_epochs": self.train.average_epochs > 1,
                "loss.label_weights": bool(self.loss.label_weights),
                "loss.name: distribution_balanced": self.loss.name == "distribution_balanced",
            }
            problems += [f"{name} has no meaning for 'tfidf': remove it." for name, there in given.items() if there]
        if self.head.kind == "generate" and self.backbone and self.backbone.num_hidden_layers is not None:
            problems.append("backbone.num_hidden_layers: head.kind: generate writes with the whole model: remove it.")
        if self.backbone and self.backbone.start_from is not None and self.head.kind in ("generate", "label_tokens"):
            problems.append(
                f"backbone.start_from: another run's weights get a fresh head, and head.kind: {self.head.kind} has "
                "words of the plain base for one: set head.kind: linear, or remove start_from."
            )
        if self.head.kind == "generate" and self.backbone and self.backbone.bidirectional:
            problems.append(
                "backbone.bidirectional: head.kind: generate writes token after token, each from those before it: "
                "remove it."
            )
        if self.distill is not None and self.backbone is None:
            problems.append("distill: only a 'backbone' learns from teachers: remove it.")
        if self.distill is not None and self.distill.hard is None and self.head.kind == "generate":
            problems.append(
                "distill: head.kind: generate writes labels, and learns from no probabilities: set distill.hard, as "
                "0.9, for labels that the teachers are sure of."
            )
        if self.head.kind == "generate" and self.data.soft_labels:
            problems.append(
                "data.soft_labels: head.kind: generate writes labels or leaves them out, no shares: remove it."
            )
        if problems:
            raise ValueError(" ".join(problems))
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML or JSON, defaults included."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """What a resume must find unchanged: all but `engine`, `sweep`, `tracking`, where the files lie, and whose code
        may run. Of a run that was started from, `run.json` holds the weights' SHA-256."""
        values = self.to_dict()
        for name in ("engine", "sweep", "tracking"):
            del values[name]
        if values["backbone"] is not None:
            del values["backbone"]["trust_remote_code"]
            values["backbone"]["start_from"] = values["backbone"]["start_from"] is not None
        for name in ("train", "test", "sample_submission", "folds", "extra_train"):
            del values["data"][name]
        if values["adapt"] is not None:
            del values["adapt"]["extra_texts"]
        if values["distill"] is not None:  # of teachers and tables the content is noted
            del values["distill"]["teachers"], values["distill"]["unlabelled"]
        return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"lora": {"r": 8}}` becomes `{"lora.r": 8}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def shipped_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with the package; configurations of Accelerate's launcher are none."""
    return {path.stem: path for path in sorted(SHIPPED.rglob("*.yaml")) if path.parent.name != "accelerate"}


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe given by path or by the name of a shipped one.

    Raises
    ------
    RecipeError
        If there is neither; names the nearest shipped recipe.
    """
    shipped, name = shipped_recipes(), str(name_or_path)
    path = Path(name_or_path)
    if os.path.isfile(path):  # Path.is_file raises for a name that is too long
        return path
    if name in shipped:
        return shipped[name]
    if os.path.isdir(path):
        inside = path / "recipe.yaml"
        known = f" The recipe of this run is {shown(str(inside))}." if os.path.isfile(inside) else ""
        raise RecipeError(f"{shown(name)} is a folder; a recipe is a file.{known}")
    raise RecipeError(
        f"No recipe {shown(name)}: it is neither a file nor one of the shipped recipes ({', '.join(shipped)})."
        f"{did_you_mean(name[:100], shipped)}"
    )


def recipe_text(path: Path) -> str:
    """What a recipe's file says.

    Raises
    ------
    RecipeError
        If it cannot be read as text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(4 * LONGEST + 1)  # UTF-8 takes up to 4 bytes
        if len(content) > 4 * LONGEST:
            raise RecipeError(f"{path} is no recipe: it has more than {4 * LONGEST / 1e6:.1f} MB.")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} is not a readable YAML file: byte {error.start} is not UTF-8. Save it as UTF-8, if it is a text."
        ) from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.") from None


def parse_override(text: str) -> tuple[str, Any]:
    """`"lora.r=8"` becomes `("lora.r", 8)`; the value is read as YAML, but marks alone (`,` or `|`) as they are, and
    what stands where a field takes text as it is written.

    Examples
    --------
    >>> parse_override("train.learning_rate=1e-4")
    ('train.learning_rate', 0.0001)
    >>> parse_override("data.label_columns=[2019, no]")
    ('data.label_columns', ['2019', 'no'])
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set takes key=value, for example --set lora.r=8. Got {shown(text)} instead.")
    key = key.strip()
    if key.count(".") > 10:
        raise RecipeError(f"--set {shown(key, quoted=False)}: no such field.")
    if re.fullmatch(r"[^\w\[\]{}'\"~]+", value):  # to YAML they are syntax
        return key, value
    try:
        path = key.split(".")
        inside = section_type(_annotation_at(path[:-1])) is None
        return key, _as_meant(read_yaml(value), _annotation_at(path), inside=inside)
    except YamlError as error:
        raise RecipeError(
            f"--set {shown(key, quoted=False)}: {shown(value)} is not a YAML value: {error}. Quotes around it make it "
            "text."
        ) from None


def _annotation_at(path: Sequence[str]) -> Any:
    """The type of the field at a place in a recipe; Any where there is none."""
    annotation: Any = Recipe
    for part in path:
        section = section_type(annotation)
        if section is not None:
            field = section.model_fields.get(part)
            annotation = field.annotation if field else Any
        else:
            annotation = _inside(annotation)
    return annotation


def _inside(annotation: Any) -> Any:
    """The type of what a list or a map of values holds."""
    inner = (get_args(member) for member in _members(annotation) if get_origin(member) in (list, tuple, dict))
    return next((types[-1] for types in inner), Any)


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _as_meant(value: Any, annotation: Any, *, inside: bool = False) -> Any:
    """Plain values of what was read as YAML. A column may be called 2019, yes or null: where a field takes text, text
    is what is written, and null stands for nothing only where it is all of a field (not `inside` a list or a map)."""
    if isinstance(value, Plain):
        # one word where a list of words is expected is a mistake, told as it is written
        takes_text = str in (*_members(annotation), _inside(annotation))
        return value.text if takes_text and value.text and (inside or value.value is not None) else value.value
    if isinstance(value, list):
        return [_as_meant(item, _inside(annotation), inside=True) for item in value]
    if isinstance(value, dict):
        section = section_type(annotation)
        if section is None:
            return {key: _as_meant(item, _inside(annotation), inside=True) for key, item in value.items()}
        types = {key: field.annotation for key, field in section.model_fields.items()}
        return {key: _as_meant(item, types.get(key, Any)) for key, item in value.items()}
    return value


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        inner = values.get(part)
        if not isinstance(inner, dict):
            inner = values[part] = {}
        values = inner
    values[last] = value


def _copied(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Maps within maps as new dicts, so that an override changes none of the caller's."""
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _of_run_folder(path: Path) -> bool:
    """Whether a recipe's file is the one that a run, a blend or an export holds."""
    return any(os.path.isfile(path.parent / name) for name in ("run.json", "labels.json", "blend.json", "export.json"))


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    trust_remote_code: bool | None = None,
) -> Recipe:
    """Load a recipe and check it.

    Parameters
    ----------
    recipe : path, name of a shipped recipe, mapping, or Recipe
    overrides : `["lora.r=8", ...]` or `{"lora.r": 8, ...}`
    trust_remote_code : whether code of the base model may run, whatever the recipe says. None: as the recipe says, but
        never as the recipe of a run folder says, which somebody else may have written

    Raises
    ------
    RecipeError
        If the file cannot be read, or with every mistake in it, one line each.

    Examples
    --------
    >>> load_recipe("tfidf-logreg", ["cv.n_splits=5"]).cv.n_splits
    5
    >>> load_recipe({"tfidf": {}, "cv": {"n_split": 5}, "loss": {"name": "bec"}})
    Traceback (most recent call last):
    lora_cls.errors.RecipeError: recipe: 2 mistakes
      loss.name: Input should be 'bce', 'focal', 'asymmetric' or 'distribution_balanced'. Got 'bec' instead.
      cv.n_split: no such field. Did you mean 'n_splits'?
    """
    where = "recipe"
    if isinstance(recipe, Recipe):
        values = recipe.to_dict()
    elif isinstance(recipe, Mapping):
        values = _copied(recipe)
    else:
        path = find_recipe(recipe)
        where = str(path)
        values = _read(path)
        if trust_remote_code is None and _of_run_folder(path):
            trust_remote_code = False
    if trust_remote_code is not None and isinstance(values.get("backbone"), dict):
        values["backbone"]["trust_remote_code"] = trust_remote_code
    pairs = dict(overrides if isinstance(overrides, Mapping) else map(parse_override, overrides))
    given = _copied(values)
    for key, value in pairs.items():
        _set_dotted(values, key, value)
    try:
        checked = Recipe.model_validate(values)
    except ValidationError as error:
        raise _mistakes(where, error, values, given, list(pairs)) from None
    if len(write_yaml(checked.to_dict())) > LONGEST:
        raise RecipeError(f"{where}: more than {LONGEST:,} characters, all fields written out, are not read back.")
    return checked


def _read(path: Path) -> dict[str, Any]:
    """The fields of a recipe's file, unchecked."""
    try:
        values = _as_meant(read_yaml(recipe_text(path)), Recipe)
    except YamlError as error:
        raise RecipeError(f"{path} is not a readable YAML file: {error}.") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold fields such as 'backbone:'. Got {type(values).__name__} instead.")
    return values


def _mistakes(
    where: str, error: ValidationError, values: Mapping[str, Any], given: Mapping[str, Any], overridden: Sequence[str]
) -> RecipeError:
    """All mistakes in one error, those of `--set` told apart from the file's.

    Parameters
    ----------
    values, given : the recipe with the overrides, and without
    overridden : fields that were overridden
    """
    lines = _explain(error.errors(include_url=False), values)
    if overridden:
        try:
            Recipe.model_validate(given)
        except ValidationError:
            pass
        else:
            where = f"--set on {where}"
    told, room = [], 1500
    for line in lines:
        told.append(f"  {shown(line, 400, quoted=False)}")
        room -= len(told[-1])
        if room < 0:
            break
    more = len(lines) - len(told)
    return RecipeError(
        f"{shown(where, 200, quoted=False)}: {len(lines)} mistake{'s' * (len(lines) > 1)}\n"
        + "\n".join([*told, *([f"  and {more} more"] if more else [])])
    )


def _explain(found: Sequence[Any], values: Mapping[str, Any]) -> list[str]:
    """One line per mistake; pydantic tells one per member of a union, and stops at the first validator of a section."""
    found = list(found)
    if any(problem["loc"] == ("lora",) and problem["type"] == "value_error" for problem in found):
        known = {key: value for key, value in values["lora"].items() if key in Lora.model_fields}
        try:
            Lora.model_validate(known)
        except ValidationError as error:
            found += [problem | {"loc": ("lora", *problem["loc"])} for problem in error.errors()]
    lines: dict[str, list[str]] = {}
    got: dict[str, str] = {}
    for problem in found:
        location = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            section = ".".join(location[:-1])
            guess = field_hint(location[-1], section) or did_you_mean(location[-1][:100], _fields_at(location[:-1]))
            lines[shown(".".join(location), quoted=False)] = [f"no such field.{guess}"]
            continue
        path = ".".join(part for i, part in enumerate(location) if part in _fields_at(location[:i])) or "recipe"
        section = "" if path == "recipe" else path
        for message in problem["msg"].removeprefix("Value error, ").split("\n"):
            field, colon, rest = message.partition(": ")
            own = problem["type"] == "value_error" and colon and re.fullmatch(r"\w+", field)
            at, said = (f"{section}.{field}", rest) if own and section else (path, message)
            if problem["type"] == "list_type" and isinstance(problem["input"], str):
                said = f"Input should be a list, as [{shown(problem['input'], 40, quoted=False)}]"
            if said.rstrip(".") not in lines.setdefault(at, []):  # two checks may find the same
                lines[at].append(said.rstrip("."))
        given = problem.get("input")
        if not isinstance(given, (dict, BaseModel)) and problem["type"] != "missing":
            got.setdefault(path, f" Got {shown(given)} instead.")
    if "recipe" not in lines:
        backbone, tfidf, blend, quantization = (
            values.get(name) is not None for name in ("backbone", "tfidf", "blend", "quantization")
        )
        combined = _combination_problems(
            backbone, tfidf, blend, quantization, "lora" not in values or values["lora"] is not None
        )
        if combined:
            lines["recipe"] = [" ".join(combined).rstrip(".")]
    return [
        f"{path}: {'; or: '.join(messages)}{'' if messages[0].endswith(('.', '?')) else '.'}{got.get(path, '')}"
        for path, messages in lines.items()
    ]


# What other tools call it, and where it stands here.
ELSEWHERE = {
    "adapter_dropout": "lora.lora_dropout",
    "alpha": "lora.lora_alpha",
    "base_model": "backbone.name_or_path",
    "batch": "train.per_device_train_batch_size",
    "batch_size": "train.per_device_train_batch_size",
    "bs": "train.per_device_train_batch_size",
    "checkpoint": "backbone.name_or_path",
    "clip": "train.max_grad_norm",
    "columns": "data.label_columns",
    "cv": "cv.n_splits",
    "dropout": "lora.lora_dropout",
    "ema": "train.ema_decay",
    "epoch": "train.num_train_epochs",
    "epochs": "train.num_train_epochs",
    "eval_batch_size": "train.per_device_eval_batch_size",
    "fold": "cv.n_splits",
    "folds": "cv.n_splits",
    "grad_accum": "train.gradient_accumulation_steps",
    "gradient_clip": "train.max_grad_norm",
    "id": "data.id_column",
    "k_folds": "cv.n_splits",
    "kfold": "cv.n_splits",
    "label": "data.label_columns",
    "label_column": "data.label_columns",
    "labels": "data.label_columns",
    "layers": "lora.layers_to_transform",
    "learning_rate": "train.learning_rate",
    "load_in_4bit": "quantization.load_in_4bit",
    "load_in_8bit": "quantization.load_in_8bit",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "loss": "loss.name",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler_type",
    "max_len": "data.max_length",
    "max_seq_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "model": "backbone.name_or_path",
    "model_name": "backbone.name_or_path",
    "model_name_or_path": "backbone.name_or_path",
    "n_epochs": "train.num_train_epochs",
    "n_folds": "cv.n_splits",
    "nfolds": "cv.n_splits",
    "num_epochs": "train.num_train_epochs",
    "num_folds": "cv.n_splits",
    "num_workers": "engine.num_threads",
    "prompt_template": "head.prompt",
    "random_seed": "train.seed",
    "rank": "lora.r",
    "scheduler": "train.lr_scheduler_type",
    "seed": "train.seed",
    "seq_len": "data.max_length",
    "target": "data.label_columns",
    "text": "data.text_columns",
    "text_column": "data.text_columns",
    "threads": "engine.num_threads",
    "threshold": "thresholds.default",
    "train_batch_size": "train.per_device_train_batch_size",
    "warmup": "train.warmup_ratio",
    "warmup_steps": "train.warmup_ratio",
    "wd": "train.weight_decay",
}


def field_hint(name: str, section: str = "") -> str:
    """`" Did you mean 'train.seed'?"` for a field that stands in another section, or is called otherwise elsewhere."""
    if name in _fields_at([section] if section else []):
        return ""
    plain = name.lower().replace("-", "_").rpartition(".")[2]
    homes = [
        f"{other}.{plain}"
        for other, field in Recipe.model_fields.items()
        if (inner := section_type(field.annotation)) is not None and plain in inner.model_fields
    ]
    known = ELSEWHERE.get(plain)
    candidates = list(dict.fromkeys([*([known] if known else []), *homes]))[:3]
    return f" Did you mean {' or '.join(map(repr, candidates))}?" if candidates else ""


def _fields_at(location: Sequence[str]) -> list[str]:
    """Names of the fields that may stand at a place in a recipe."""
    section: Any = Recipe
    for part in location:
        field = section.model_fields.get(part) if hasattr(section, "model_fields") else None
        section = section_type(field.annotation) if field else None
        if section is None:
            return []
    return list(section.model_fields)


def section_type(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds (`Head`, or the `Lora` of `Lora | None`); None for a field of values."""
    candidates = (annotation, *getattr(annotation, "__args__", ()))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
