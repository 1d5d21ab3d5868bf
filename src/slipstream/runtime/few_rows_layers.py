"""RMS norms and rotary embeddings by `few_rows.c`, in the forwards of a shadow.

Which modules and functions of transformers compute one is found by trial: on random numbers ours must give the same.
Norms that add 1 to their weight, or round elsewhere, and embeddings of neighbours instead of halves are left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.runtime.few_rows import DTYPES, FewRows, few_rows
from slipstream.target.families import RUNNING_ERRORS
from slipstream.target.shadow import Change, Forward

_EPSILON = ("variance_epsilon", "eps")
"""What transformers' norms call it."""
_ROTARY = "apply_rotary_pos_emb"
"""What the modelling files of transformers call it."""
_OTHERWISE = 0.02
"""Of a norm's numbers, how many may be rounded otherwise. Where they are rounded elsewhere it is a fifth."""
_WIDTH = 32
"""Of heads that are turned: a multiple of it."""

Rotary = Callable[..., tuple[Tensor, Tensor]]


def layer_changes(model: nn.Module) -> dict[nn.Module, Change]:
    """For a shadow: the norms and the attention of a model on a CPU, where the library is and fits."""
    dtypes = {one.dtype for one in model.parameters()}
    library = few_rows(*dtypes) if len(dtypes) == 1 else None
    if library is None:
        return {}
    norms = {module: _as_norm(library, epsilon) for module in model.modules() if (epsilon := _epsilon(library, module))}
    functions: dict[FunctionType, FunctionType | None] = {}
    turning = {module: _turning(library, functions) for module in model.modules() if _turns(module)}
    return {**norms, **turning}


def _epsilon(library: FewRows, module: nn.Module) -> float | None:
    """That of a norm which ours gives the same as; None for any other module."""
    weight: Any = getattr(module, "weight", None)
    epsilon = next((value for name in _EPSILON if isinstance(value := getattr(module, name, None), float)), None)
    if epsilon is None or not _is_ours(weight) or weight.dim() != 1 or "forward" in module.__dict__:
        return None
    if len(list(module.parameters())) > 1 or any(True for _ in module.buffers()):
        return None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, len(weight), generator=generator) * torch.tensor([[0.01], [1.0], [50.0]])
    rows = rows.to(weight.dtype)
    try:
        with torch.no_grad():
            expected = module.forward(rows)  # without anybody's hooks
    except RUNNING_ERRORS:
        return None
    return epsilon if _is_rounded_alike(library.rms_norm(rows, weight, epsilon), expected) else None


def _is_rounded_alike(found: Tensor, expected: Any) -> bool:
    """Whether norms differ by no more than the order of their sums: by the last places, in bfloat16 in few numbers."""
    if not isinstance(expected, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    apart = (found.double() - expected.double()).abs()
    near = bool((apart <= 4 * torch.finfo(found.dtype).eps * expected.double().abs()).all())
    return near and (found.dtype == torch.float32 or int((found != expected).sum()) <= _OTHERWISE * found.numel())


def _is_ours(weight: Any) -> bool:
    plain = type(weight) is nn.Parameter and weight.is_contiguous() and not weight.is_inference()
    return plain and weight.device.type == "cpu" and weight.dtype in DTYPES


def _as_norm(library: FewRows, epsilon: float) -> Change:
    def change(own: Forward) -> Forward:
        found: Any = own.__self__._parameters  # type: ignore[attr-defined]

        def forward(rows: Tensor, *more: Any, **named: Any) -> Any:
            weight = found["weight"]
            if more or named or not _fits_norm(rows, weight):
                return own(rows, *more, **named)
            return library.rms_norm(rows, weight, epsilon)

        return forward

    return change


def _fits_norm(rows: Tensor, weight: Tensor) -> bool:
    alike = rows.dtype is weight.dtype and rows.is_cpu and weight.is_cpu and rows.shape[-1] == weight.shape[0]
    return alike and not rows.requires_grad and rows.numel() > 0


def _turns(module: nn.Module) -> bool:
    """Whether its forward is that of its class and calls the rotary embedding by its usual name."""
    function = type(module).forward
    named = isinstance(function, FunctionType) and _ROTARY in function.__code__.co_names
    own = module.forward
    return named and isinstance(own, MethodType) and own.__func__ is function and own.__self__ is module


def _turning(library: FewRows, known: dict[FunctionType, FunctionType | None]) -> Change:
    """known: what was made of a function before; None where it is left as it is."""

    def change(own: Forward) -> Forward:
        function: FunctionType = own.__func__  # type: ignore[attr-defined]
        if function not in known:
            known[function] = _with_rotary(library, function)
        made = known[function]
        return own if made is None else MethodType(made, own.__self__)  # type: ignore[attr-defined]

    return change


def _with_rotary(library: FewRows, function: FunctionType) -> FunctionType | None:
    """The function with our rotary embedding in place of the one that it calls; None where that is another."""
    theirs = function.__globals__.get(_ROTARY)
    if theirs is None or not _is_same(library, theirs):
        return None
    names = {**function.__globals__, _ROTARY: _rotary(library, theirs)}
    made = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made


def _is_same(library: FewRows, theirs: Rotary) -> bool:
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 4, 3, _WIDTH), (1, 2, 3, _WIDTH), (1, 3, _WIDTH), (1, 3, _WIDTH))
    for dtype in DTYPES:
        given = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
        try:
            expected = theirs(*given)
        except RUNNING_ERRORS:
            return False
        if len(expected) != 2 or not all(map(torch.equal, expected, library.rotary(*given))):
            return False
    return True


def _rotary(library: FewRows, theirs: Rotary) -> Rotary:
    def rotary(*given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if named or len(given) != 4 or not _fits(*given):
            return theirs(*given, **named)
        q, k, cos, sin = given
        return library.rotary(q, k, cos.contiguous(), sin.contiguous())

    return rotary


def _fits(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether queries and keys can be turned by ours."""
    if q.dim() != 4 or q.shape[0] != 1 or q.shape[-1] % _WIDTH or q.dtype not in DTYPES:
        return False
    if any(one.dtype is not q.dtype or one.requires_grad or not one.is_cpu for one in (q, k, cos, sin)):
        return False
    sized = cos.shape == sin.shape == (1, *q.shape[2:]) and k.shape == (1, k.shape[1], *q.shape[2:])
    return sized and q.stride(3) == k.stride(3) == 1
