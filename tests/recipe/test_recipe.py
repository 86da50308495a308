"""Recipes: mistakes reported together and by name, overrides that mean what they say, shipped files that load."""

import re
from pathlib import Path

import pytest

from lora_cls.errors import RecipeError
from lora_cls.recipe import ELSEWHERE, Recipe, flatten, load_recipe, parse_override, shipped_recipes
from lora_cls.reference import look_up

BACKBONE = {"backbone": {"name_or_path": "org/model"}}
SHIPPED = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(set(SHIPPED.rglob("*.yaml")) - set(SHIPPED.glob("accelerate/*")))  # configurations of a launcher


def message(values, overrides=()):
    with pytest.raises(RecipeError) as error:
        load_recipe(values, overrides)
    return str(error.value)


def test_all_mistakes_at_once():
    """Three mistakes in three sections come in one error, each with the path of its field and the value received."""
    text = message(
        {**BACKBONE, "train": {"learning_rat": 1e-4, "num_train_epochs": 0}, "cv": {"n_splits": "ten"}, "looss": {}}
    )
    assert "4 mistakes" in text
    assert "train.learning_rat: no such field. Did you mean 'learning_rate'?" in text
    assert re.search(r"train\.num_train_epochs: .*greater than or equal to 1.* Got 0 instead", text)
    assert re.search(r"cv\.n_splits: .*integer.* Got 'ten' instead", text)
    assert "looss: no such field. Did you mean 'loss'?" in text


def test_fields_and_their_combination_at_once():
    """A wrong field does not hide that the backbone is missing: both are reported in the first try."""
    text = message({"train": {"seeed": 1}})
    assert "train.seeed" in text
    assert "exactly one of 'backbone'" in text


def test_one_mistake_is_counted_once():
    """A field that takes a word or a list gives one line per mistake, with the field's own path."""
    text = message({**BACKBONE, "loss": {"pos_weight": "heavy"}, "lora": {"target_modules": 5}})
    assert "2 mistakes" in text
    paths = [line.split(":")[0].strip() for line in text.splitlines()[1:]]
    assert sorted(paths) == ["lora.target_modules", "loss.pos_weight"]


def test_every_mistake_within_lora():
    """A name unknown to PEFT does not hide a value out of range beside it."""
    text = message({**BACKBONE, "lora": {"r": 0, "lora_dropuot": 0.1}})
    assert "lora_dropuot" in text
    assert "lora.r" in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone.dtype", "bf16"),
        ("data.text_columns", "text"),
        ("data.max_length", 2),
        ("train.learning_rate", -1),
        ("train.select", "best"),
        ("head.pooling", "max"),
        ("loss.pos_weight", [1, "x"]),
        ("thresholds.default", 2),
        ("prediction.at_least_one", "perhaps"),
        ("lora", 8),
        ("cv", [10]),
    ],
)
def test_wrong_type_or_value(field, value):
    """A value of the wrong type or outside its range names its field."""
    assert field in message(BACKBONE, {field: value})


def test_unknown_field_far_from_all():
    """A name like none of ours is refused without a silly guess."""
    text = message({**BACKBONE, "zzzz": 1})
    assert "zzzz: no such field." in text
    assert "Did you mean" not in text


def test_overrides():
    """--set reaches nested fields, lists and numbers written as 1e-4, and makes sections that the recipe lacks."""
    recipe = load_recipe(
        BACKBONE,
        [
            "train.learning_rate=1e-4", "lora.r=8", "lora.target_modules=[q_proj, v_proj]", "data.text_columns=[a, b]",
            "quantization.load_in_4bit=true", "data.id_column=tweet", "loss.pos_weight=[1, 2.5, 1e1]",
        ],
    )  # fmt: skip
    assert recipe.train.learning_rate == 1e-4
    assert recipe.lora.r == 8
    assert recipe.lora.target_modules == ["q_proj", "v_proj"]
    assert recipe.data.text_columns == ["a", "b"]
    assert recipe.data.id_column == "tweet"
    assert recipe.quantization.load_in_4bit
    assert recipe.loss.pos_weight == [1.0, 2.5, 10.0]


def test_number_as_in_yaml_1_1(tmp_path):
    """A recipe file may write 1e-4, which YAML 1.1 calls a text."""
    file = tmp_path / "r.yaml"
    file.write_text("backbone: {name_or_path: org/model}\ntrain: {learning_rate: 1e-4}\n")
    assert load_recipe(file).train.learning_rate == 1e-4


def test_quoted_override_stays_text():
    """A value in quotes is a text even if it looks like a number, as a commit or a column name may."""
    assert parse_override('backbone.revision="1e5"') == ("backbone.revision", "1e5")


def test_full_fine_tuning():
    """lora=null trains every weight; the default is LoRA on all linear layers."""
    assert load_recipe(BACKBONE).lora.target_modules == "all-linear"
    assert load_recipe(BACKBONE, ["lora=null"]).lora is None
    assert load_recipe({**BACKBONE, "lora": None}, ["lora.r=4"]).lora.r == 4


@pytest.mark.parametrize("text", ["lora.r", "=8", " = 8"])
def test_override_without_key_or_value(text):
    """--set without a key and '=' says how it is written, and repeats what it got."""
    with pytest.raises(RecipeError, match=re.escape("--set takes key=value, for example --set lora.r=8.")):
        load_recipe(BACKBONE, [text])


def test_override_that_is_no_yaml():
    """--set with an unclosed bracket names the key."""
    with pytest.raises(RecipeError, match=r"--set data\.text_columns"):
        load_recipe(BACKBONE, ["data.text_columns=[a"])


def test_override_of_unknown_field():
    """A mistyped key of --set is refused like one in the file."""
    assert "train.lerning_rate: no such field. Did you mean 'learning_rate'?" in message(
        BACKBONE, ["train.lerning_rate=1"]
    )


def test_overrides_leave_the_given_mapping_alone():
    """Loading a recipe with overrides does not change the mapping or the recipe it was made from."""
    values = {**BACKBONE, "train": {"seed": 1}}
    recipe = load_recipe(values, ["train.seed=2", "lora.r=2"])
    assert values == {**BACKBONE, "train": {"seed": 1}}
    assert load_recipe(recipe, {"train.seed": 3}).train.seed == 3
    assert recipe.train.seed == 2


@pytest.mark.parametrize("values", [{}, {**BACKBONE, "tfidf": {}}])
def test_backbone_or_tfidf(values):
    """A recipe needs exactly one of backbone and tfidf."""
    assert "exactly one of 'backbone'" in message(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({**BACKBONE, "lora": None, "quantization": {"load_in_4bit": True}}, "cannot be fully fine-tuned"),
        ({"tfidf": {}, "quantization": {"load_in_4bit": True}}, "no meaning for 'tfidf'"),
        ({**BACKBONE, "quantization": {}}, "exactly one of load_in_4bit and load_in_8bit"),
        ({**BACKBONE, "quantization": {"load_in_4bit": True, "load_in_8bit": True}}, "exactly one of load_in_4bit"),
    ],
)
def test_quantization_needs_sense(values, words):
    """Quantization goes with LoRA on a backbone, in one width."""
    assert words in message(values)


def test_unknown_peft_field():
    """A mistyped LoraConfig field gets PEFT's nearest name; a genuine one passes and is kept."""
    assert "'use_rs_lora' is no field of PEFT's LoraConfig. Did you mean 'use_rslora'?" in message(
        {**BACKBONE, "lora": {"use_rs_lora": True}}
    )
    recipe = load_recipe({**BACKBONE, "lora": {"use_rslora": True}})
    assert recipe.to_dict()["lora"]["use_rslora"] is True


@pytest.mark.parametrize("name", ["modules_to_save", "task_type", "inference_mode", "peft_type"])
def test_peft_fields_that_are_ours(name):
    """PEFT fields that carry the head or the task cannot be set: a checkpoint without its head would follow."""
    assert f"{name} is set by lora_cls itself" in message({**BACKBONE, "lora": {name: ["lm_head"]}})


@pytest.mark.parametrize("revision", [None, "main"])
def test_remote_code_needs_a_pinned_revision(revision):
    """Code from a repository runs only at a pinned revision."""
    values = {"backbone": {"name_or_path": "org/model", "trust_remote_code": True, "revision": revision}}
    assert "pin revision to a commit" in message(values)
    assert load_recipe(values, {"backbone.revision": "0" * 40}).backbone.trust_remote_code


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_shipped_recipe(file):
    """Every shipped recipe loads by its name, and opens with its launch command and the memory that it needs."""
    assert shipped_recipes()[file.stem] == file
    assert isinstance(load_recipe(file.stem), Recipe)
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert re.match(rf"# lora-cls run {re.escape(file.stem)}( --train \S+ --test \S+)? +\(.+\)$", first)
    assert re.search(r"\d ?[GM]B of (GPU )?memory|no model to download", first)


def test_names_of_shipped_recipes_are_unique():
    """Two files of one name in different folders would hide one of them."""
    assert RECIPES
    assert len(shipped_recipes()) == len(RECIPES)


def test_python_objects_are_refused(tmp_path):
    """A recipe is data: a YAML tag that would run Python is an error, and nothing runs."""
    file, made = tmp_path / "r.yaml", tmp_path / "made"
    file.write_text(f"backbone: !!python/object/apply:os.mkdir ['{made}']\n")
    with pytest.raises(RecipeError, match=r"r\.yaml is not a readable YAML file"):
        load_recipe(file)
    with pytest.raises(RecipeError, match="not a YAML value"):
        load_recipe(BACKBONE, [f"train.seed=!!python/object/apply:os.mkdir ['{made}']"])
    assert not made.exists()


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"", b"just words", b"a: [1", b"a: \xe9\n"])
def test_file_that_holds_no_recipe(tmp_path, content):
    """A file that is no mapping, no YAML or no UTF-8 is named."""
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load_recipe(file)


@pytest.mark.parametrize("values", [{**BACKBONE, 1: 2}, {**BACKBONE, "lora": {1: 2}}, {**BACKBONE, "cv": {2: 3}}])
def test_key_that_is_no_text(values):
    """A number in the place of a field name is a mistake like any other."""
    assert "1 mistake" in message(values)


def test_unknown_name_suggests_the_nearest():
    """A mistyped recipe name gets the nearest shipped one."""
    with pytest.raises(RecipeError, match=r"No recipe 'tfidf-logrge'.*Did you mean 'tfidf-logreg'\?"):
        load_recipe("tfidf-logrge")


@pytest.mark.parametrize("name", ["minilm-l6", "gemma-3-270m", "tfidf-logreg"])
def test_resolved_recipe_reads_back(name):
    """What a run folder keeps as recipe.yaml loads to the same recipe, defaults included."""
    recipe = load_recipe(name, ["lora.use_rslora=true"] if name == "gemma-3-270m" else ())
    assert load_recipe(recipe.to_dict()) == recipe


def test_identity():
    """Engine settings and file places do not belong to the identity of a run; every other field does."""
    recipe = load_recipe(BACKBONE)
    same = load_recipe(recipe, {"engine.num_threads": 3, "data.train": "elsewhere.csv", "data.folds": "f.csv"})
    other = load_recipe(recipe, {"data.on_missing": "drop"})
    assert flatten(same.identity()) == flatten(recipe.identity())
    assert flatten(other.identity()) != flatten(recipe.identity())


def test_recipe_is_read_only():
    """A loaded recipe cannot be changed behind the back of the run that it describes."""
    recipe = load_recipe(BACKBONE)
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.seed = 1


@pytest.mark.parametrize("mark", [",", "|", ";", " ", ", ", "-", " | ", "&", "*", "#", ">", "?", ":"])
def test_marks_stand_for_themselves(mark):
    """A delimiter on the command line needs no quotes within quotes."""
    assert load_recipe(BACKBONE, [f"data.label_delimiter={mark}"]).data.label_delimiter == mark
    assert parse_override("lora=~") == ("lora", None)
    assert parse_override("lora=") == ("lora", None)
    assert parse_override("data.label_columns=[]") == ("data.label_columns", [])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"task": "single_label", "thresholds": {"strategy": "global"}}, "thresholds.strategy: global decides labels"),
        ({"task": "single_label", "thresholds": {"strategy": "auto"}}, "thresholds.strategy: auto decides labels"),
        ({"task": "single_label", "thresholds": {"strategy": "expected_f1"}}, "strategy: expected_f1 decides labels"),
        ({"task": "single_label", "loss": {"name": "asymmetric"}}, "loss.name: asymmetric is made for labels"),
        (
            {"task": "single_label", "loss": {"label_weights": {"joy": 2}}},
            "loss.label_weights: a class of task",
        ),
        (
            {"task": "binary", "loss": {"name": "distribution_balanced", "pos_weight": "none"}},
            "loss.name: distribution_balanced weighs the labels of a row against each other",
        ),
        ({"task": "single_label", "prediction": {"at_least_one": True}}, "prediction.at_least_one: task: single_label"),
        (
            {"task": "single_label", "data": {"label_delimiter": ","}},
            "data.label_delimiter: task: single_label has one",
        ),
        ({"task": "binary", "data": {"label_delimiter": ","}}, "data.label_delimiter: task: binary has one"),
        ({"task": "binary", "thresholds": {"strategy": "argmax"}}, "thresholds.strategy: argmax chooses one class"),
        ({"task": "multi_label", "thresholds": {"strategy": "prior_adjusted"}}, "prior_adjusted chooses one class"),
        ({"data": {"label_delimiter": ""}}, "data.label_delimiter"),
        ({"task": "regression"}, "task: Input should be"),
    ],
)
def test_fields_that_contradict_the_task(values, expected):
    """A field without meaning for the task is an error that names both."""
    assert expected in message({**BACKBONE, **values})


BALANCED = {"name": "distribution_balanced", "pos_weight": "none"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"train": {"average_epochs": 4}}, "train.average_epochs: there are only 3 epochs"),
        (
            {"train": {"average_epochs": 2, "select": "inner"}},
            "average_epochs: the mean of the last epochs leaves",
        ),
        ({"train": {"ema_decay": 1}}, "train.ema_decay"),
        ({"loss": {"name": "distribution_balanced"}}, "set loss.pos_weight: none (now balanced)"),
        ({"loss": BALANCED | {"label_smoothing": 0.1}}, "loss.label_smoothing: distribution_balanced"),
        ({"loss": {"label_weights": {"joy": 0}}}, "loss.label_weights"),
        ({"head": {"kind": "generate"}, "loss": {"label_weights": {"joy": 2}}}, "loss.label_weights and numbers in"),
        ({"backbone": None, "tfidf": {}, "train": {"ema_decay": 0.9}}, "train.ema_decay has no meaning for 'tfidf'"),
        ({"backbone": None, "tfidf": {}, "loss": {"label_weights": {"joy": 2}}}, "loss.label_weights has no meaning"),
    ],
)
def test_averages_and_losses_that_contradict(values, expected):
    """Averages of epochs that are not there or are chosen among, losses that weigh twice, and what has no loss."""
    assert expected in message({**BACKBONE, **values})


def test_averages_and_losses_that_go_together():
    """A moving average goes with any choice of epochs, and with a mean of the last; both parts of `loss` together."""
    for select in ("last", "inner", "cross_fitted", "scored_fold"):
        assert load_recipe({**BACKBONE, "train": {"ema_decay": 0.999, "select": select}}).train.ema_decay == 0.999
    both = load_recipe({**BACKBONE, "train": {"ema_decay": 0.9, "average_epochs": 3}}, ["loss.label_weights.joy=2"])
    assert both.loss.label_weights == {"joy": 2}
    assert load_recipe({**BACKBONE, "loss": BALANCED | {"label_weights": {"joy": 2}}}).loss.db_lambda == 2


def test_contradictions_with_the_task_at_once():
    """All of them in one error; nothing while the task is null."""
    wrong = {"loss": {"name": "asymmetric"}, "thresholds": {"strategy": "fixed"}, "prediction": {"at_least_one": True}}
    said = message({**BACKBONE, "task": "single_label", **wrong})
    assert "loss.name" in said and "thresholds.strategy" in said and "prediction.at_least_one" in said
    assert load_recipe({**BACKBONE, **wrong}).task is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.label_columns=[yes, no]", ["yes", "no"]),
        ("data.label_columns=[2019]", ["2019"]),
        ("data.label_columns=[null, ~, 1e3, 0x1f, 2020-01-01, <<, =, .inf]",
         ["null", "~", "1e3", "0x1f", "2020-01-01", "<<", "=", ".inf"]),
        ("data.text_columns=[1_000]", ["1_000"]),
        ("data.ignore_columns=[on]", ["on"]),
        ("data.id_column=2019", "2019"),
        ("data.id_column=null", None),
        ("data.split_column=yes", "yes"),
        ("lora.target_modules=[1, 2]", ["1", "2"]),
    ],
)  # fmt: skip
def test_names_are_text_as_written(tmp_path, override, expected):
    """Columns may be called like numbers, dates and words of YAML, without quotes, in --set and in a file."""
    field = override.partition("=")[0]
    assert flatten(load_recipe(BACKBONE, [override]).to_dict())[field] == expected
    section, name = field.split(".")
    file = tmp_path / "r.yaml"
    file.write_text(f"backbone: {{name_or_path: m}}\n{section}:\n  {name}: {override.partition('=')[2]}\n")
    assert flatten(load_recipe(file).to_dict())[field] == expected


def test_words_of_labels_are_text_as_written():
    """Keys and values of `head.label_words` likewise."""
    recipe = load_recipe(BACKBONE, ["head.kind=label_tokens", "head.label_words={yes: 1, 2019: null}"])
    assert recipe.head.label_words == {"yes": "1", "2019": "null"}


def test_one_word_where_a_list_is_expected():
    """The advice can be pasted."""
    assert "as [yes]" in message(BACKBONE, ["data.label_columns=yes"])


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("epochs=3", "train.num_train_epochs"),
        ("train.epochs=3", "train.num_train_epochs"),
        ("lr=1e-4", "train.learning_rate"),
        ("learning_rate=1e-4", "train.learning_rate"),
        ("batch_size=8", "train.per_device_train_batch_size"),
        ("rank=8", "lora.r"),
        ("lora.rank=8", "lora.r"),
        ("alpha=8", "lora.lora_alpha"),
        ("lora.alpha=8", "lora.lora_alpha"),
        ("dropout=0.1", "lora.lora_dropout"),
        ("seed=1", "train.seed"),
        ("cv.seed=1", "train.seed"),
        ("folds=5", "cv.n_splits"),
        ("cv.folds=5", "cv.n_splits"),
        ("max_len=64", "data.max_length"),
        ("max_length=64", "data.max_length"),
        ("train.max_length=64", "data.max_length"),
        ("model=x", "backbone.name_or_path"),
    ],
)
def test_names_of_other_tools(override, field):
    """A popular name, or ours without its section, is answered by the field that is meant; so is the reference."""
    said = message(BACKBONE, [override])
    assert f"Did you mean '{field}'" in said
    assert look_up(field)
    with pytest.raises(RecipeError, match=re.escape(field)):
        look_up(override.partition("=")[0])


def test_names_of_other_tools_are_fields_of_ours():
    """No hint leads to a field that is none."""
    for field in ELSEWHERE.values():
        assert look_up(field)


def test_mistakes_of_set_are_not_the_files():
    """A shipped recipe is not blamed for an override; a mistake of the file itself is."""
    assert message("minilm-l6", ["train.num_train_epochs=0"]).startswith("--set on ")
    assert message({**BACKBONE, "cv": {"x": 1}}, ["train.num_train_epochs=0"]).startswith("recipe: 2 mistakes")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cv.random_state", 2**32),
        ("train.seed", 2**32),
        ("engine.num_threads", 10**9),
        ("train.learning_rate", float("inf")),
        ("train.learning_rate", float("nan")),
        ("train.weight_decay", float("inf")),
        ("lora.lora_alpha", float("inf")),
        ("lora.r", 10**9),
        ("loss.pos_weight", [1.0, float("nan")]),
        ("loss.pos_weight", [1.0, 1e300]),
        ("loss.focal_gamma", 1e308),
        ("loss.max_pos_weight", float("inf")),
        ("data.max_length", 10**12),
        ("data.max_rows", 10**12),
        ("thresholds.min_positives", 10**12),
        ("engine.prefix_cache_gb", float("inf")),
        pytest.param("train.num_train_epochs", int("9" * 5000, 16), id="epochs of 5,000 digits"),
        ("backbone.revision", "main; rm -rf ~"),
        ("backbone.revision", "--upload-pack=x"),
        ("backbone.name_or_path", "package:a b"),
        ("backbone.name_or_path", "package:--index-url=http://x"),
        ("backbone.name_or_path", "a\nb"),
        ("backbone.name_or_path", ""),
        ("lora.rank_pattern", {"(": 4}),
        ("lora.rank_pattern", {"q": "x"}),
        ("lora.rank_pattern", 5),
        ("lora.alpha_pattern", {"q": float("inf")}),
        ("lora.use_dora", "maybe"),
        ("lora.bias", 5),
        ("lora.exclude_modules", "("),
        ("lora.exclude_modules", 5),
        ("lora.layers_pattern", {}),
        ("lora.lora_bias", [1]),
        ("lora.trainable_token_indices", "x"),
        ("lora.layers_to_transform", [10**30]),
    ],
)
def test_value_without_sense(field, value):
    """Numbers that no machine takes, and PEFT's fields of another type, name their field in a short sentence."""
    said = message(BACKBONE, {field: value})
    assert field in said
    assert len(said) < 500


@pytest.mark.parametrize("value", [1e-320, 1e300, 0, float("nan")])
def test_regularisation_that_never_ends(value):
    """scikit-learn does not come back from some."""
    assert "tfidf.C" in message({"tfidf": {"C": value}, "lora": None})
    assert "word_ngram_range" in message({"tfidf": {"word_ngram_range": [3, 1]}, "lora": None})
    assert "char_ngram_range" in message({"tfidf": {"char_ngram_range": [1, 10**9]}, "lora": None})


@pytest.mark.parametrize("name", ["eva_config", "loftq_config", "megatron_config", "megatron_core", "auto_mapping"])
def test_peft_fields_that_bring_code_or_data(name):
    """A recipe names no module to import, and no way that needs data of its own."""
    assert f"{name}" in message(BACKBONE, {f"lora.{name}": "os"})
    assert "remove it" in message(BACKBONE, {f"lora.{name}": "os"})


def test_long_values_are_cut():
    """A value of 200,000 characters, and 5,000 mistakes, make a message that a terminal shows."""
    for values in (
        {**BACKBONE, "task": "x" * 200_000},
        {**BACKBONE, "data": {"label_columns": "x" * 200_000}},
        {**BACKBONE, "x" * 200_000: 1},
        {**BACKBONE, **{f"k{i}": 1 for i in range(5000)}},
        {"backbone": {"name_or_path": "package:" + "x " * 2000, "revision": "y " * 2000}},
    ):
        assert len(message(values)) < 2000
    assert len(message(BACKBONE, ["task=" + "x" * 200_000])) < 2000
    assert len(message(BACKBONE, ["x" * 200_000])) < 2000
    assert len(message("x" * 200_000)) < 2000


def test_place_that_is_no_recipe(tmp_path):
    """A folder, a binary, another encoding and a file without end are each told in a sentence."""
    (tmp_path / "recipe.yaml").write_text("tfidf: {}\n")
    assert "is a folder" in message(tmp_path)
    assert str(tmp_path / "recipe.yaml") in message(tmp_path)
    for content in (bytes(range(256)) * 10, "a: é".encode("utf-16"), b"\x89PNG\r\n\x1a\n", b"a: \xe9"):
        (tmp_path / "r.yaml").write_bytes(content)
        assert "not UTF-8" in message(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_bytes(b"# " + b"x" * 10_000_000)
    assert "more than 1.2 MB" in message(tmp_path / "r.yaml")
    assert "No recipe" in message("a\0b")
