"""A frozen matrix and its bias, in the form in which the processor multiplies fastest by it."""

from __future__ import annotations

import torch

PACKED_FOR = 1024  # rows in a product; others work, too


class FrozenLinear:
    """`x @ W.T + bias` of a W that does not change, and the way back to x.

    A CPU multiplies 16-bit numbers by a matrix that oneDNN has brought into blocks, at every product anew. Here it is
    brought once for either way: two copies, and none beside them while it is trained. The products are the same, to the
    last bit where there is no bias (`tests/modeling/test_frozen_linear.py`).

    Parameters
    ----------
    weight : Tensor of shape (n_out, n_in), without gradient
    bias : Tensor of shape (n_out,), or None
    packs : whether memory may be given for copies
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, packs: bool = True) -> None:
        self.weight, self.bias = weight, bias
        self.packed = packed(weight) if packs else None
        self._packed_back: torch.Tensor | None = None  # made by the first way back: answers need none

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product, Tensor of shape (..., n_out), no view: who takes it may write into it (Longformer)."""
        if self.packed is not None:
            found = _product(x, self.packed, self.bias)
            return found.new_empty(0).set_(found)  # type: ignore[call-overload]  # the same memory, no view
        y = torch.empty(*x.shape[:-1], len(self.weight), dtype=x.dtype, device=x.device)
        rows, flat = x.reshape(-1, x.shape[-1]), y.view(-1, len(self.weight))
        if self.bias is None:
            torch.mm(rows, self.weight.T, out=flat)
        else:
            torch.addmm(self.bias, rows, self.weight.T, out=flat)
        return y

    def back(self, grad: torch.Tensor) -> torch.Tensor:
        """`grad @ W`, Tensor of shape (..., n_in)."""
        if self.packed is not None and self._packed_back is None:
            self._packed_back = packed(self.weight.T)
        if self._packed_back is None:
            return grad @ self.weight
        self._put_away()
        return _product(grad, self._packed_back, None)

    def _put_away(self) -> None:
        """Give the weight's memory back, unless it is a part of a larger one: it reads NaN until `restore`. What was
        mapped from a file comes back as a copy of this process's own."""
        if self.weight.untyped_storage().nbytes() == self.weight.nbytes:
            self.weight.data = self.weight.new_full((), torch.nan).expand(self.weight.shape)

    def restore(self) -> None:
        """Give the weight its values again, where it was put away; the next way back packs it anew."""
        self._packed_back = None
        if self.packed is not None and self.weight.untyped_storage().nbytes() < self.weight.nbytes:
            self.weight.data = self.packed.to_dense()


def packed(weight: torch.Tensor) -> torch.Tensor | None:
    """A bf16 weight as oneDNN reads it; None where there is no such way. The operators are those that `torch.compile`
    takes for constant weights; they are tried before they are relied on, as they are no public ones."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return None
    try:
        found: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), PACKED_FOR)
        _product(weight.new_zeros(1, weight.shape[1]), found, None)
    except (AttributeError, RuntimeError):
        return None
    return found


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found
