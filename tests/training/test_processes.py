"""What processes of a launcher say to each other: two of them on this machine, in one script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_cls.training.processes import Processes

ROOT = Path(__file__).parents[2]
# in the names of the script: `processes`, `rank`, `values` (the recipe's), `found` (what each process answers)
SCRIPT = '''
import json, sys
import numpy as np, torch
from lora_cls.errors import TrainingError
from lora_cls.modeling.adapter import build_model, reset_model
from lora_cls.modeling.loading import load_base
from lora_cls.modeling.sharding import device_mesh, shard_base
from lora_cls.recipe import load_recipe
from lora_cls.training.loop import accumulated_loss, make_accelerator
from lora_cls.training.processes import ALONE, end_launched, processes_of_launch

values, folder = json.loads(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
processes, cpu, found = processes_of_launch(), torch.device("cpu"), {}
rank = processes.rank

# messages
if processes.main:
    processes.tell({"fold": 3})
found["heard"] = {"fold": 3} if processes.main else processes.heard()
order = []
with processes.in_turn():
    found["in_turn"] = sorted(__import__("pathlib").Path(folder).glob("turn-*")) == [] if processes.main else True
    open(f"{folder}/turn-{rank}", "w").close()
with processes.main_first():
    if processes.main:
        open(f"{folder}/main", "w").close()
    found["main_first"] = __import__("os").path.exists(f"{folder}/main")

# sums
numbers, matrix = torch.tensor([rank + 1, 2**40]), torch.full((2, 2), float(rank))
processes.add_up([numbers])
processes.add_up([matrix, torch.zeros(3)])
found["sums"] = [numbers.tolist(), matrix.tolist()]
weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]
weights[0].grad = torch.full((2,), 1.0 + rank)
if rank:
    weights[1].grad = torch.ones(2)
loss = torch.tensor(1.5)
processes.add_up_gradients(weights, loss)
found["gradients"] = [None if w.grad is None else w.grad.tolist() for w in weights] + [loss.item()]
start = torch.nn.Parameter(torch.full((3,), float(rank + 5)))
processes.take_over(2, [start])
found["start"] = start.tolist()
try:
    processes.take_over(rank, [start])
except TrainingError as error:
    found["other_epochs"] = str(error)

# answers
def answer(rows):
    return np.stack([rows, rows**2], 1).astype(np.float32), [f"row {row}" for row in rows]

found["answers"] = {}
for n in (0, 1, 2, 5):
    array, items = processes.shared_out(np.arange(n) % 3, answer)
    found["answers"][n] = [array.tolist(), items]
found["no_items"] = processes.shared_out(np.arange(3), lambda rows: (rows.astype(np.float32)[:, None], []))[1]

# a step
class Squares:
    """A loss that is added up over rows, of texts with as many tokens as their number."""

    def loss(self, model, rows):
        ids = torch.arange(5, 13)[None].repeat(len(rows), 1) + torch.as_tensor(rows)[:, None]
        mask = (torch.arange(8)[None] <= torch.as_tensor(rows)[:, None] % 8).long()
        return model(ids, mask).square().sum(), mask.numpy()

def gradients(by, sharded=False):
    recipe = load_recipe(values)
    model = build_model(load_base(recipe.backbone, recipe.quantization, torch.float32, cpu, sharded=sharded), recipe, 3)
    reset_model(model, recipe, 0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    if sharded:
        shard_base(model, device_mesh(cpu))
    accelerator = make_accelerator(torch.float32, cpu)
    rows = np.arange(18)
    loss, masks = accumulated_loss(model, Squares(), np.split(rows, [8, 16, 17]), accelerator, by)
    kinds = {type(weight).__name__ for weight in model.parameters() if not weight.requires_grad}
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    return grads, loss.item(), sum(len(mask) for mask in masks), kinds

alone, loss, n_alone, _ = gradients(ALONE)
for name in ("whole", "sharded"):
    grads, its_loss, n_rows, kinds = gradients(processes, name == "sharded")
    assert set(grads) == set(alone)
    scale = max(float(grad.abs().max()) for grad in alone.values())
    off = max(float((grads[key] - alone[key]).abs().max()) for key in alone) / scale
    found[name] = [off, abs(its_loss - loss) / loss, n_rows, n_alone, sorted(kinds)]
found["seeds"] = processes.seed(7)
with open(f"{folder}/found-{rank}.json", "w") as file:
    file.write(json.dumps(found))
end_launched()
'''


@pytest.fixture(scope="module")
def found(tmp_path_factory, tiny_model):
    """What each of two processes found, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    values = {
        "backbone": {"name_or_path": tiny_model("llama"), "dtype": "float32", "attn_implementation": "sdpa"},
        "head": {"pooling": "last_token"}, "lora": {"r": 4}, "quantization": {"load_in_4bit": True},
    }  # fmt: skip
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(folder / "script.py"), json.dumps(values), str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in (0, 1)]


def test_messages(found):
    """The first process tells, goes first, and takes its turn first."""
    for of_rank in found:
        assert of_rank["heard"] == {"fold": 3}
        assert of_rank["in_turn"] and of_rank["main_first"]


def test_sums(found):
    """Sums are exact for large counts, and keep every tensor's shape; the first process's weights become all's."""
    for of_rank in found:
        assert of_rank["sums"] == [[3, 2**41], [[1.0, 1.0], [1.0, 1.0]]]
        assert of_rank["start"] == [5.0, 5.0, 5.0]
        assert "after other epochs (0, 1)" in of_rank["other_epochs"]


def test_gradients_that_one_process_lacks(found):
    """A gradient that one process has is everyone's; one that nobody has stays none, and moves no weight."""
    for of_rank in found:
        assert of_rank["gradients"] == [[3.0, 3.0], [1.0, 1.0], None, 3.0]


def test_answers(found):
    """Every row once, in its order, on every process, however few rows there are."""
    for of_rank in found:
        for n in (0, 1, 2, 5):
            assert of_rank["answers"][str(n)] == [[[i, i**2] for i in range(n)], [f"row {i}" for i in range(n)]]
        assert of_rank["no_items"] == []


@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_gradients_of_a_step(found, kind):
    """The gradients of a step of four batches, two of them with a single row, are those of one process; so of a 4-bit
    base that is spread over both."""
    n_rows = 0
    for of_rank in found:
        off, off_loss, n_mine, n_alone, kinds = of_rank[kind]
        assert off < 1e-5 and off_loss < 1e-6
        assert ("DTensor" in kinds) == (kind == "sharded")
        n_rows += n_mine
    assert n_rows == n_alone == 18


def test_own_numbers(found):
    """Dropout draws other numbers in each process; the first one's are those of a process alone."""
    assert found[0]["seeds"] == 7 != found[1]["seeds"]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares(size):
    """Every row of a batch is in one share, and shares differ by one row at most."""
    for n_rows in (1, 2, 8, 13):
        shares = [Processes(rank, size).share(np.arange(n_rows)) for rank in range(size)]
        assert sorted(np.concatenate(shares)) == list(range(n_rows))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
