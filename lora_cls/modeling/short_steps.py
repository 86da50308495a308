"""What a layer computes, in fewer steps: adapters, attention, norms, dropout, and the last layer's second half.

For a CPU, where what stands between the matrix products takes as long as half of them. Layers that read the same input
are computed together (`low_rank.py`); attention copies no keys (`attention.py`); a norm is one step (`norms.py`);
dropout draws its random bits together (`dropout.py`); the last layer computes its feed-forward half only for the tokens
that are pooled. The numbers are those of the model's own code but for their last digits, and dropout draws other masks
of the same probability. Modules stay the model's own: only `forward` is another, and for foreign code only where a
trial shows that it computes what the module computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch
from torch import nn

from lora_cls.errors import BackboneError
from lora_cls.modeling.attention import Attend, Rotate, with_functions
from lora_cls.modeling.classifier import SequenceClassifier
from lora_cls.modeling.dropout import Dropout
from lora_cls.modeling.layers import find_layers
from lora_cls.modeling.low_rank import SharedInput, share_inputs
from lora_cls.modeling.norms import Norm, ScaledNorm, early, early_above_one, late
from lora_cls.modeling.prefix import TOLERANCE
from lora_cls.modeling.read_places import ReadPlaces
from lora_cls.modeling.remade import Remade, can_be_remade


def shorten_steps(model: Any) -> int:
    """Give a model on a CPU the short ways, wherever they compute what its modules compute; returns how many took one.

    Trained norms, and kinds of norm that are not known here, keep their own.

    Parameters
    ----------
    model : a `SequenceClassifier`, or another model with a `base`
    """
    count = 0
    # layers that are computed again as a whole: when the pooled places are gone, and from what they read alone
    again = any(getattr(module, "gradient_checkpointing", False) for module in model.base.modules())
    for module in model.base.modules():
        forward = Remade(module) if not again and can_be_remade(module) else _short(module)
        if forward is not None:
            module.forward = forward
            count += 1
    if isinstance(model, SequenceClassifier) and model.has_adapter:
        model.shared_inputs = _shared_inputs(model)
        count += len(model.shared_inputs)
    if type(model) is SequenceClassifier and model.pooling != "mean" and not again:
        model.last_layer = _last_layer(model)
        count += model.last_layer is not None
    return count


def _last_layer(model: SequenceClassifier) -> ReadPlaces | None:
    """The last layer, to be read at the pooled tokens alone; None where what is pooled would change."""
    try:
        layers = find_layers(model.base)[1]
    except BackboneError:
        return None
    found = ReadPlaces.of(layers[-1])
    if found is None:
        return None
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            expected = model.pooled(*_rows())
            model.last_layer = found
            off = (model.pooled(*_rows()) - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        dtype = next(model.base.parameters()).dtype if model.dtype is None else model.dtype
        same = bool(off <= TOLERANCE.get(dtype, 1e-4))
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
        same = False  # whatever a model of foreign code does with one token
    finally:
        model.last_layer = None
        model.train(was_training)
    if not same:
        found.remove()
    return found if same else None


def _rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of some tokens to try a model on, and their mask."""
    ids, mask = torch.arange(1, 11).view(2, 5), torch.ones(2, 5, dtype=torch.int64)
    mask[1, 3:] = 0
    return ids, mask


def _shared_inputs(model: SequenceClassifier) -> list[SharedInput]:
    """Layers that are computed together; none where foreign code fails on a trial."""
    was_training = model.training
    ids, mask = _rows()
    model.eval()
    try:
        with torch.no_grad():
            return share_inputs(model.backbone, lambda: model.base(input_ids=ids, attention_mask=mask))
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
        return []
    finally:
        model.train(was_training)


def _short(module: nn.Module) -> Any:
    """The short forward of a module; None where there is none."""
    if type(module) is nn.Dropout:
        return None if module.inplace else Dropout(module)
    if type(module).__name__.endswith("RMSNorm"):
        return _norm(module)
    return _attention(module)


def _norm(module: Any) -> Norm | None:
    """The way that gives a norm's own values for random ones, the nearest of those that do."""
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, torch.Tensor) or weight.ndim != 1 or not isinstance(eps, float) or weight.is_meta:
        return None
    x = _random(8, len(weight), weight.dtype)
    ways: Iterable[Callable[[torch.Tensor], torch.Tensor]] = (late, early, early_above_one)
    norms = [Norm(module, eps, way) for way in ways]
    with torch.no_grad():
        own = module(x)
        off = [int((ScaledNorm.apply(x, norm.scale(weight), eps) != own).sum()) for norm in norms]
        best = min(range(len(norms)), key=off.__getitem__)
        same = _near(ScaledNorm.apply(x, norms[best].scale(weight), eps), own)
    return norms[best] if same else None


def _random(n_rows: int, n_columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Normal values, the same every time, drawn from no generator that training uses."""
    return (2 * torch.randn(n_rows, n_columns, generator=torch.Generator().manual_seed(seed))).to(dtype)


def _near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether all values are the same but for the last digit of their precision."""
    relative = max(1e-5, 2 * torch.finfo(expected.dtype).eps)
    return found.dtype == expected.dtype and torch.allclose(found.float(), expected.float(), rtol=relative, atol=1e-6)


def _attention(module: nn.Module) -> Any:
    """The forward of an attention module with the short functions in it; None where none gives what its own gives."""
    own: Any = type(module).forward
    if not isinstance(own, FunctionType) or hasattr(own, "__wrapped__") or "forward" in vars(module):
        return None
    found = {name: own.__globals__[name] for name in own.__code__.co_names if callable(own.__globals__.get(name))}
    functions: dict[str, Any] = {}
    if (attend := found.get("eager_attention_forward")) and _attends_alike(module, attend):
        functions["eager_attention_forward"] = Attend(attend)
    if (rotate := found.get("apply_rotary_pos_emb")) and _rotates_alike(rotate):
        functions["apply_rotary_pos_emb"] = Rotate(rotate)
    return with_functions(module, functions) if functions else None


def _attends_alike(module: nn.Module, own: Callable[..., Any]) -> bool:
    """Whether attention computes what `Attend` computes in its place."""
    groups = getattr(module, "num_key_value_groups", 1)
    q = _random(2 * 2 * groups * 5, 8, torch.float32).view(2, 2 * groups, 5, 8)
    k, v = (_random(2 * 2 * 5, 8, torch.float32, seed).view(2, 2, 5, 8) for seed in (1, 2))
    mask = torch.zeros(2, 1, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), torch.finfo(torch.float32).min)
    try:
        with torch.no_grad():
            expected = own(module, q, k, v, mask, scaling=0.3, dropout=0.0)[0]
            return _near(Attend(own)(module, q, k, v, mask, scaling=0.3, dropout=0.0)[0], expected)
    except Exception:  # whatever another model's function asks for
        return False


def _rotates_alike(own: Callable[..., Any]) -> bool:
    """Whether positions are turned as `Rotate` turns them, and in no higher precision (ModernBERT's decoder)."""
    q, k = _random(24, 8, torch.float32).view(2, 4, 3, 8), _random(12, 8, torch.float32, 1).view(2, 2, 3, 8)
    cos, sin = (_random(3, 8, torch.float32, seed).view(1, 3, 8) for seed in (2, 3))
    try:
        with torch.no_grad():
            expected = own(q, k, cos, sin)
            alike = all(_near(*pair) for pair in zip(Rotate(own)(q, k, cos, sin), expected, strict=True))
            low = [x.bfloat16() for x in (q, k, cos, sin)]
            once = own(*(x.float() for x in low))[0].bfloat16()  # rounded at the end alone
            return alike and not torch.equal(own(*low)[0], once)
    except Exception:  # whatever another model's function asks for
        return False
