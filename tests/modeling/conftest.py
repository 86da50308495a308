"""What the tests of this folder share: building a classifier, making its weights matter, and asking it."""

import numpy as np
import pytest
import torch

from lora_cls.modeling.adapter import build_model, reset_model, trainable_head
from lora_cls.modeling.loading import load_base
from lora_cls.modeling.precision import DTYPES
from lora_cls.recipe import load_recipe
from lora_cls.text.tokens import pad
from lora_cls.training.checkpoint import trainable

CPU = torch.device("cpu")
DEEP = {
    "vocab_size": 400, "max_position_embeddings": 130, "initializer_range": 0.1,
    "hidden_size": 64, "dim": 64, "embedding_size": 64, "n_embd": 64, "intermediate_size": 128, "hidden_dim": 128,
    "num_hidden_layers": 4, "n_layers": 4, "n_layer": 4, "num_attention_heads": 4, "n_heads": 4, "n_head": 4,
    "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "attention_window": [16, 16, 8, 8],
    "local_attention": 16, "global_attn_every_n_layers": 2, "position_buckets": 32, "pad_token_id": 1,
    "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3,
}  # fmt: skip
SLIDING = ["sliding_attention", "full_attention"] * 2
MORE = {  # beyond what the shared configurations say
    "Gemma3TextConfig": {"layer_types": SLIDING},
    "Qwen2Config": {"layer_types": SLIDING, "use_sliding_window": True, "sliding_window": 8},
}
NOT_SHIPPED = {
    "MPNetConfig": ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "GPT2Config": ("n_embd", "n_layer", "n_head"),
    "BloomConfig": ("hidden_size", "n_layer", "n_head"),
}


@pytest.fixture(scope="session")
def build():
    """`build(recipe, n_labels=3, seed=0)`: a fresh classifier in the recipe's dtype, as a learner makes it."""

    def make(recipe, n_labels=3, seed=0):
        dtype = DTYPES[recipe.backbone.dtype] if recipe.lora else torch.float32
        attention = recipe.backbone.attn_implementation
        base = load_base(recipe.backbone, recipe.quantization, dtype, CPU, attn_implementation=attention)
        model = build_model(base, recipe, n_labels)
        reset_model(model, recipe, seed)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def perturb():
    """`perturb(model, seed=0)`: noise on adapters and a wide head, so that everything shows in the logits."""

    def change(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        head = {id(parameter) for parameter in trainable_head(model).parameters()}
        with torch.no_grad():
            for parameter in trainable(model).values():
                scale = 0.5 if id(parameter) in head else 0.05
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
        return model

    return change


@pytest.fixture(scope="session")
def ask():
    """`ask(model, rows, side="right", pad_id=0)`: logits of one batch of token rows, in the base's precision."""

    def answer(model, rows, side="right", pad_id=0):
        ids, mask = (torch.from_numpy(array) for array in pad(rows, pad_id, side))
        with torch.no_grad():
            return model(ids, mask).float().numpy()

    return answer


@pytest.fixture(scope="session")
def random_rows():
    """`random_rows(lengths, seed=0)`: token ids between 5 and 300."""

    def make(lengths, seed=0):
        rng = np.random.default_rng(seed)
        return [rng.integers(5, 300, size=n) for n in lengths]

    return make


@pytest.fixture(scope="session")
def deep_model(tmp_path_factory):
    """Factory `deep_model(kind, dropout=0.0)`: folder of a random model of four layers, without a tokenizer.

    `kind` names a configuration's class: of a shipped recipe's model (its real configuration made small), or of
    NOT_SHIPPED. Where a model has windows they are shorter than the texts of these tests, and layers differ.
    """
    made = {}

    def make(kind, dropout=0.0):
        if (kind, dropout) not in made:
            import transformers

            from benchmarks.configurations import CONFIGURATIONS

            shipped = dict(CONFIGURATIONS.values())
            values = dict.fromkeys(NOT_SHIPPED[kind]) if kind in NOT_SHIPPED else shipped[kind]
            common = ("vocab_size", "max_position_embeddings", "initializer_range", "pad_token_id", "bos_token_id")
            common += ("eos_token_id", "cls_token_id", "sep_token_id")
            values = {key: DEEP.get(key, values.get(key)) for key in (*values, *common)} | MORE.get(kind, {})
            if "num_key_value_heads" in values:
                values["num_key_value_heads"] = min(2, values["num_key_value_heads"])
            config = getattr(transformers, kind)(**values)
            for name, value in config.to_dict().items():
                if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                    setattr(config, name, dropout)
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp("deep") / kind
            transformers.AutoModel.from_config(config).save_pretrained(folder)
            made[kind, dropout] = str(folder)
        return made[kind, dropout]

    return make


@pytest.fixture(scope="session")
def deep_recipe(deep_model):
    """Factory `deep_recipe(kind, dropout=0.0, **overrides)`: adapters in the upper two of four layers, fp32, mean."""

    def make(kind, dropout=0.0, **overrides):
        values = {
            "backbone": {"name_or_path": deep_model(kind, dropout), "dtype": "float32"},
            "head": {"pooling": "mean"},
            "lora": {"r": 4, "lora_alpha": 8, "top_layers": 0.5},
            "data": {"max_length": 48},
        }
        return load_recipe(values, {key.replace("__", "."): value for key, value in overrides.items()})

    return make


@pytest.fixture(scope="session")
def gradients():
    """`gradients(model, rows, side="right", pad_id=0, seed=0)`: logits of a batch in training mode, and the gradients
    of all that is trained under a loss that tells rows and labels apart."""

    def compute(model, rows, side="right", pad_id=0, seed=0):
        ids, mask = (torch.from_numpy(array) for array in pad(rows, pad_id, side))
        model.train()
        model.zero_grad()
        torch.manual_seed(seed)
        logits = model(ids, mask)
        weight = torch.arange(1.0, 1 + logits.numel()).view_as(logits) / logits.numel()
        (weight * logits.sigmoid().square()).sum().backward()
        return logits.detach().clone(), {
            name: parameter.grad.clone() for name, parameter in trainable(model).items() if parameter.grad is not None
        }

    return compute


@pytest.fixture(scope="session")
def difference():
    """`difference(found, expected)`: the greater of two relative errors, of logits and of all gradients as one vector;
    both as `gradients` gives them."""

    def measure(found, expected):
        assert found[1].keys() == expected[1].keys() and expected[1]
        vectors = [
            torch.cat([answer[1][name].flatten() for name in sorted(expected[1])]) for answer in (found, expected)
        ]
        errors = [
            float((a.double() - b.double()).norm() / b.double().norm()) for a, b in ((found[0], expected[0]), vectors)
        ]
        assert all(np.isfinite(errors))
        return max(errors)

    return measure
