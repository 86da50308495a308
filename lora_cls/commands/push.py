"""A run or an export on the Hugging Face Hub: what goes, checked for what must not leave, and sent in one commit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

from lora_cls.commands.leaks import local_paths, quoted_texts
from lora_cls.commands.predict import BASE
from lora_cls.data import TableLike, read_table
from lora_cls.errors import DataError, RecipeError, RunError, brief, no_fold_finished, shown
from lora_cls.files import write_bytes, write_json
from lora_cls.recipe import Recipe, Tracking, load_recipe
from lora_cls.report.card import BEFORE_SHARING, HUB_ID, card, export_card
from lora_cls.report.content import page_content
from lora_cls.report.page import render
from lora_cls.report.sentences import short_name
from lora_cls.runs import FoldFolder, RunFiles, RunFolder, RunInfo, training_data
from lora_cls.runs.folder import recipe_bytes
from lora_cls.runs.io import read_bytes
from lora_cls.runs.records import ExportInfo
from lora_cls.runs.sums import sums

MODEL_FILES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".onnx", ".data")
"""Endings of what belongs to a model and its tokenizer."""
DECISIONS = ("labels.json", "thresholds.json", "classifier.json")
"""Of an export: what its answers are called, and how they are decided."""
UNKNOWN = "OWNER/BASE"
Texts = tuple[list[str], list[str]]
"""Texts, and the ids of their rows."""
OWNED = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
OURS = re.compile(
    r"(fold-\d+|refit)/.+|(adapter|model|base)/.+|report\.html"
    r"|(fold|labels|metrics|thresholds|classifier|run|export|config)\.json|recipe\.yaml|[\w.-]+\.(safetensors|onnx)"
)
"""What an earlier push may have left on the hub: removed where it is not sent again, as it would answer with it."""


@dataclass(frozen=True)
class Sent:
    """One file that goes.

    Attributes
    ----------
    path : within the repository
    size : bytes
    sha256 : in hexadecimal
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Push:
    """What went to the hub, or would go.

    Attributes
    ----------
    files : in the order of their paths
    kept : what lies in the folder and stays there, by name
    notes : what else there is to know
    url : of the commit; None of a dry run
    """

    repo_id: str
    public: bool
    files: list[Sent]
    kept: list[str]
    notes: list[str]
    url: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def push(
    run: str | Path | RunFolder,
    repo_id: str,
    *,
    public: bool = False,
    dry_run: bool = False,
    base_model: str | None = None,
    train: TableLike | None = None,
    trust_remote_code: bool = False,
) -> Push:
    """Send a run's models, or an export, to a repository on the Hugging Face Hub.

    What goes is what opens and explains the models: adapters or weights, the recipe, labels, thresholds, scores, card
    and page. Card and page are made anew for it: rows have numbers in place of their ids, there are no texts, and the
    base has its name on the hub. Tables, out-of-fold answers and hashes of texts stay here. The files that are to go
    are then searched for paths of this machine and, where the training table is at hand, for texts of its rows.

    Parameters
    ----------
    repo_id : OWNER/NAME; made if it is not there, and private unless `public`
    dry_run : send nothing, ask for no token and no network
    base_model : what the base is called on the hub, where the run took it from a folder or a Python package
    train : the training table, to look for its texts; where None, the file that the run was started with
    trust_remote_code : as in `Classifier.load`

    Raises
    ------
    RunError
        If the folder is none that can be sent, or holds what must not leave: all of it is named; and if the hub cannot
        be reached or refuses.

    Examples
    --------
    >>> push("runs/lora", "ann/emotions", base_model="org/tiny", dry_run=True).files[0].path
    'README.md'
    """
    _check_names(repo_id, base_model)
    with TemporaryDirectory(prefix="lora_cls-") as scratch:
        folder, problems = Path(scratch), []
        if not isinstance(run, RunFolder) and _for_others(Path(run)):
            place = Path(run)
            _copy_model(place, folder)
            texts, notes = _texts_of_table(train)
        else:
            run = RunFolder.of(run, trust_remote_code=trust_remote_code)
            place, name = run.path, repo_id.rpartition("/")[2]
            _check_kind(run)
            base = base_model or _base_on_hub(run)
            problems += [] if base else [_base_unknown(run)]
            (_write_export if run.exported else _write_run)(run, folder, name, base or UNKNOWN)
            texts, notes = _training_texts(run, train)
        problems += [*local_paths(folder), *quoted_texts(folder, *texts)]
        if problems:
            raise RunError(f"{place} is not sent to the hub, nothing of it:\n  " + "\n  ".join(problems))
        files = [Sent(name, (folder / name).stat().st_size, value) for name, value in sums(folder, [folder]).items()]
        going = {PurePath(file.path).parts[0] for file in files}
        kept = sorted(entry.name for entry in place.iterdir() if entry.name not in going)
        url = None if dry_run else _send(folder, repo_id, public, f"{place.resolve().name} by lora_cls")
    return Push(repo_id, public, files, kept, notes, url)


def _for_others(folder: Path) -> bool:
    """Whether it is an export for another program, which needs no recipe."""
    files = RunFiles(folder)
    return files.export.is_file() and not files.recipe.exists()


def _check_names(repo_id: str, base_model: str | None) -> None:
    if not OWNED.fullmatch(repo_id):
        raise RecipeError(f"REPO_ID is OWNER/NAME, as ann/emotions. Got {shown(repo_id)} instead.")
    if base_model is not None and not HUB_ID.fullmatch(base_model):
        raise RecipeError(
            f"--base-model is what the base is called on the hub, as google/gemma-3-270m. Got {shown(base_model)} "
            "instead."
        )


def _check_kind(run: RunFolder) -> None:
    """Refuse what could not be used elsewhere, or is made of the training texts."""
    recipe, name = run.recipe, run.path
    if recipe.tfidf is not None:
        raise RunError(
            f"{name} is a run of TF-IDF: its vocabularies hold words and pieces of the training texts, and nothing of "
            "it works without them. It is not sent."
        )
    if recipe.blend is not None:
        raise RunError(f"{name} is a blend, which has no models of its own: push the runs that it is made of.")
    if "adapted" in run.info.choices and not run.exported:
        raise RunError(
            f"{name} stands on a base that was trained on texts and lies in this machine's cache folder alone. Push an "
            "export, which holds it: lora-cls export RUN --out DIR."
        )
    if not run.exported and not run.finished_folds:
        raise no_fold_finished(name)


def _base_on_hub(run: RunFolder) -> str | None:
    """What a run's base is called on the hub, as far as the run knows; of an export that holds it, whatever it was."""
    assert run.recipe.backbone is not None
    name = run.recipe.backbone.name_or_path
    if name == run.info.backbone_path and HUB_ID.fullmatch(name):
        return name
    holds_base = run.exported and ((run.path / BASE).is_dir() or not (run.path / "adapter").is_dir())
    return short_name(name) if holds_base else None


def _base_unknown(run: RunFolder) -> str:
    assert run.recipe.backbone is not None
    return (
        f"The base is {shown(run.recipe.backbone.name_or_path)}, which others do not have: say what it is called on "
        "the hub with --base-model OWNER/NAME."
    )


def _training_texts(run: RunFolder, train: TableLike | None) -> tuple[Texts, list[str]]:
    """Those of the training rows, and a note where they cannot be read."""
    try:
        rows = training_data(run, train)
    except (DataError, RunError) as error:
        if train is not None:
            raise
        why = brief(error).partition(": give it again")[0]
        note = f"No texts of training rows were looked for ({why}): give the table with --train."
        return ([], []), [note]
    return (rows.texts, rows.ids), []


def _texts_of_table(train: TableLike | None) -> tuple[Texts, list[str]]:
    """All cells of a table, as nobody says which columns were read, and a note where there is none."""
    if train is None:
        return ([], []), ["No texts of training rows were looked for: give the table with --train."]
    table = read_table(train)
    cells = [(str(cell), f"row {i}") for name in table for i, cell in enumerate(table[name])]
    return ([text for text, _ in cells], [row for _, row in cells]), []


# What goes


def _write_run(run: RunFolder, folder: Path, name: str, base: str) -> None:
    """The folds' models and what opens and explains them."""
    results = run.results()
    told = run.told_as(name, _recipe(run, base), _info(run, base))
    _write_common(told, folder)
    shutil.copy(run.files.labels, folder)
    shutil.copy(run.files.decision, folder)
    results.scores.model_copy(update={"files": {}}).write(RunFiles(folder).scores)
    folds = [run.fold(number) for number in run.finished_folds]
    for fold in [*folds, *([run.refit] if run.refit.finished else [])]:
        _copy_fold(fold, folder / fold.path.name, base)
    write_bytes(RunFiles(folder).card, _without_advice(card(told, results.scores)))
    rows = [str(i + 1) for i in results.oof.rows]  # ids may be names of people
    page = page_content(told, None, replace(results, oof=replace(results.oof, ids=rows)))
    write_bytes(RunFiles(folder).page, render(page).encode())


def _write_export(run: RunFolder, folder: Path, name: str, base: str) -> None:
    """The one model, and what opens and explains it."""
    about = ExportInfo.read(run.files.export)
    told = run.told_as(name, _recipe(run, base), _info(run, base))
    _write_common(told, folder)
    for name in DECISIONS:
        if (run.path / name).is_file():
            shutil.copy(run.path / name, folder)
    _copy_fold(FoldFolder(run.path), folder, base)
    about.write(RunFiles(folder).export)
    if about.kind == "adapter":
        text = export_card(told, told, about)
    else:  # its snippet opens what lies beside it
        text = read_bytes(run.files.card).decode()
    write_bytes(RunFiles(folder).card, _without_advice(text))


def _write_common(told: RunFolder, folder: Path) -> None:
    files = RunFiles(folder)
    write_bytes(files.recipe, recipe_bytes(told.recipe))
    told.info.model_copy(update={"files": sums(folder, [files.recipe])}).write(files.info)


def _recipe(run: RunFolder, base: str) -> Recipe:
    """The run's recipe without what names files, folders and servers of its maker."""
    recipe = run.recipe
    changes: dict[str, Any] = {
        f"data.{name}": None for name in ("train", "test", "sample_submission", "folds", "extra_train")
    }
    changes |= {"backbone.name_or_path": base, "backbone.start_from": None, "sweep": None, "tracking": Tracking()}
    if recipe.adapt is not None:
        changes["adapt.extra_texts"] = None
    if recipe.distill is not None:
        changes["distill.teachers"] = [PurePath(teacher).name for teacher in recipe.distill.teachers]
        changes["distill.unlabelled"] = None
    return load_recipe(recipe, changes, trust_remote_code=run.trust_remote_code)


def _info(run: RunFolder, base: str) -> RunInfo:
    """`run.json` without folders of this machine, and without hashes of tables."""
    info = run.info
    paths = {key: path and PurePath(path.replace("\\", "/")).name for key, path in info.data.paths.items()}
    hashes = {key: None for key in type(info.data).model_fields if key.endswith("_sha256")}
    data = info.data.model_copy(update={**hashes, "train_sha256": "", "paths": paths})
    place = base if info.backbone_path not in (None, "model") else info.backbone_path
    return info.model_copy(update={"data": data, "backbone_path": place})


def _copy_fold(fold: FoldFolder, folder: Path, base: str) -> None:
    """The model of one fold, and its `fold.json` with the sums of what is copied."""
    folder.mkdir(exist_ok=True)
    for place in [fold.adapter, fold.model, fold.path / BASE]:
        for file in sorted(fold.weights(place).glob("*")) if place.is_dir() else []:
            if file.is_file() and file.suffix in MODEL_FILES:
                (folder / place.name).mkdir(exist_ok=True)
                shutil.copy(file, folder / place.name / file.name)
    config = FoldFolder(folder).adapter / "adapter_config.json"
    if config.is_file():
        values = json.loads(config.read_bytes())
        write_json(config, values | {"base_model_name_or_path": base})
    FoldFolder(folder).write_info(fold.info.model_copy(update={"files": {}}))


def _copy_model(place: Path, folder: Path) -> None:
    """Copy an export for another program as it is, but for what belongs to no model."""
    for file in sorted(place.rglob("*")):
        if file.is_file() and (file.suffix in MODEL_FILES or file.name == "README.md"):
            copy = folder / file.relative_to(place)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)


def _without_advice(text: str) -> bytes:
    """A card without its last part, which says what to look after before one shares it."""
    return (text.rpartition(f"\n{BEFORE_SHARING}\n")[0] or text).encode()


# To the hub


def _send(folder: Path, repo_id: str, public: bool, message: str) -> str:
    """One commit that holds the folder's files; returns its address."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(library_name="lora_cls")
    going = sums(folder, [folder])
    with _explained(repo_id):
        try:
            there = api.repo_info(repo_id)
        except RepositoryNotFoundError:
            api.create_repo(repo_id, private=not public)
            old: list[str] = []
        else:
            if not there.private and not public:
                raise RunError(f"{repo_id} is there, and public: send it there with --public, or choose another name.")
            old = [name for name in api.list_repo_files(repo_id) if name not in going and OURS.fullmatch(name)]
        added = [CommitOperationAdd(name, folder / name) for name in going]
        removed = [CommitOperationDelete(name) for name in old]
        sent = api.create_commit(repo_id, [*added, *removed], commit_message=message)
    return str(sent.commit_url)


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """What the hub's library raises, in a sentence that says what to do."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    hub = constants.ENDPOINT
    no_answer: Any = HfHubHTTPError.__bases__[0]  # of httpx or of httpx2, as the library's version has it
    if get_token() is None:
        raise RunError("There is no token for the hub: hf auth login keeps one, or set HF_TOKEN.")
    try:
        yield
    except OfflineModeIsEnabled:
        raise RunError("The hub is switched off by HF_HUB_OFFLINE: unset it, and repeat the command.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = {
            401: f"{hub} does not know the token: hf auth login keeps a new one, or set HF_TOKEN.",
            403: f"{hub} does not let this token write to {repo_id}: give it the right to, or choose another OWNER.",
            404: f"{hub} knows no {repo_id}, or no such OWNER, or does not let this token write there.",
        }.get(status, f"{hub} refused {repo_id} ({brief(error)}). Repeat the command later.")
        raise RunError(said) from None
    except (no_answer, OSError) as error:
        raise RunError(
            f"{hub} cannot be reached ({brief(error)}). Repeat the command where there is a network."
        ) from None
    except (ValueError, RuntimeError) as error:  # of a file's upload
        raise RunError(f"{hub} took not all files of {repo_id}, and shows none ({brief(error)}). Repeat it.") from None
