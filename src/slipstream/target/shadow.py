"""Shadows: a model with other forwards here and there, beside the model itself, which is never touched.

Whoever loaded a model may run it in another thread, as may other targets on it. A hook or a forward put into its
modules would work on their passes, too. A shadow is a twin of the model's outermost module and of those on the way to a
change; everything else it shares with the model. Twins share parameters, buffers and hooks as well, so no tensor is
copied, and weights or hooks that are changed later are changed in both.

A pass of a shadow leaves no state behind: a rotary embedding whose frequencies follow the length of the text runs as a
copy made for the call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import nn

Forward = Callable[..., Any]
Change = Callable[[Forward], Forward]
"""Takes the forward of a twin and returns what is to be run in its stead."""

Module = TypeVar("Module", bound=nn.Module)

_SHARED = frozenset(nn.Module().__dict__)  # of every module: parameters, buffers, hooks
_ROLLING = ("dynamic", "longrope")


def shadow(model: Module, changes: Mapping[nn.Module, Change]) -> Module:
    """`model` with the forwards of some of its modules changed; `model` itself where there is nothing to change."""
    return _Twins(model, {**_without_memory(model), **changes}).of(model)


class _Twins:
    """The twins of one shadow, by what they are twins of."""

    def __init__(self, model: nn.Module, changes: Mapping[nn.Module, Change]) -> None:
        self._changes = changes
        self._twins: dict[nn.Module, nn.Module] = {}
        self._leads: dict[nn.Module, bool] = {}  # whether a module is changed or holds one that is
        self._functions: dict[FunctionType, Any] = {}
        self._leads_to_change(model)

    def of(self, module: Module) -> Module:
        """The twin, or the module itself where nothing in it is changed."""
        if not self._leads.get(module, False):
            return module
        if module not in self._twins:
            self._make(module)
        return self._twins[module]  # type: ignore[return-value]

    def _leads_to_change(self, module: nn.Module) -> bool:
        if module not in self._leads:
            self._leads[module] = module in self._changes  # for a module that holds itself
            inner = [self._leads_to_change(child) for child in module.children()]
            self._leads[module] = module in self._changes or any(inner)
        return self._leads[module]

    def _make(self, module: nn.Module) -> None:
        uncompiled = module._modules.get("_orig_mod")  # inside `torch.compile`'s wrapper: what was compiled is not this
        if uncompiled is not None:
            self._twins[module] = self.of(uncompiled)
            return
        twin = object.__new__(type(module))
        self._twins[module] = twin  # first, since its attributes may lead back to it
        own = twin.__dict__
        own.update(module.__dict__)
        own.pop("_compiled_call_impl", None)
        children = {name: child if child is None else self.of(child) for name, child in module._modules.items()}
        if not all(map(_is, children.values(), module._modules.values())):  # else shared: an adapter may come later
            own["_modules"] = children
        for name, value in module.__dict__.items():
            if name not in _SHARED:
                own[name] = self._bound(value)
        if module in self._changes:
            own["forward"] = self._changes[module](twin.forward)

    def _bound(self, value: Any) -> Any:
        """An attribute of a module with the twins in place of what they are twins of; itself where it has none."""
        if isinstance(value, nn.Module):
            return self.of(value)
        if isinstance(value, MethodType):
            owner = self._bound(value.__self__)
            return value if owner is value.__self__ else MethodType(value.__func__, owner)
        if isinstance(value, functools.partial):
            return self._bound_partial(value)
        if isinstance(value, FunctionType):
            if value not in self._functions:
                self._functions[value] = value  # a function may have itself in its closure
                self._functions[value] = self._bound_function(value)
            return self._functions[value]
        if type(value) in (list, tuple):
            inner = [self._bound(one) for one in value]
            return value if all(map(_is, inner, value)) else type(value)(inner)
        if type(value) is dict:
            found = {key: self._bound(one) for key, one in value.items()}
            return value if all(map(_is, found.values(), value.values())) else found
        return value

    def _bound_partial(self, value: functools.partial[Any]) -> functools.partial[Any]:
        """Accelerate runs a module by a partial of its own function and the module."""
        before = (value.func, *value.args, *value.keywords.values())
        after = [self._bound(one) for one in before]
        if all(map(_is, after, before)):
            return value
        function, *rest = after
        args, keywords = rest[: len(value.args)], rest[len(value.args) :]
        bound = functools.partial(function, *args, **dict(zip(value.keywords, keywords, strict=True)))
        bound.__dict__.update(value.__dict__)
        return bound

    def _bound_function(self, function: FunctionType) -> Any:
        """A function that has modules or their methods in its closure, as one that wraps an older forward has."""
        compiled = function.__dict__.get("_torchdynamo_orig_callable")  # by `torch.compile`
        if compiled is not None:
            return self._bound(compiled)
        cells = [self._bound_cell(cell) for cell in function.__closure__ or ()]
        if all(map(_is, cells, function.__closure__ or ())):
            return function
        bound = FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
        )
        bound.__kwdefaults__ = function.__kwdefaults__
        bound.__dict__.update(function.__dict__)
        return bound

    def _bound_cell(self, cell: CellType) -> CellType:
        try:
            before = cell.cell_contents
        except ValueError:  # empty
            return cell
        if not isinstance(before, nn.Module | MethodType | functools.partial | FunctionType):
            return cell
        after = self._bound(before)
        return cell if after is before else CellType(after)


def _is(one: object, other: object) -> bool:
    return one is other


def _without_memory(model: nn.Module) -> dict[nn.Module, Change]:
    """Of the modules that remember passes, forwards that do not."""
    return {module: _on_a_copy(module) for module in model.modules() if _remembers(module)}


def _remembers(module: nn.Module) -> bool:
    kinds = module.__dict__.get("rope_type")
    named = kinds.values() if isinstance(kinds, dict) else [kinds]  # by types of layers, or one for all
    return any(isinstance(kind, str) and any(rolling in kind for rolling in _ROLLING) for kind in named)


def _on_a_copy(module: nn.Module) -> Change:
    return lambda own: lambda *args, **kwargs: _as_new(module).forward(*args, **kwargs)


def _as_new(rotary: nn.Module) -> nn.Module:
    """A copy of a rotary embedding that has seen no text: transformers' keeps the base of the longest one so far."""
    new = _Twins(rotary, {rotary: lambda own: own}).of(rotary)
    new.__dict__["_buffers"] = {name: None if one is None else one.clone() for name, one in rotary._buffers.items()}
    _forget(new)
    return new


def forget_longer_passes(model: nn.Module) -> None:
    """Let a dynamic RoPE of `model` itself follow the next pass, whatever passes were made before it."""
    for module in model.modules():
        if _remembers(module):
            _forget(module)


def _forget(rotary: Any) -> None:
    for name in [name for name in dir(rotary) if name.endswith("original_inv_freq")]:
        now = name.replace("original_inv_freq", "inv_freq")
        setattr(rotary, now, getattr(rotary, name).clone().to(getattr(rotary, now).device))
    for name in [name for name in rotary.__dict__ if name.endswith("max_seq_len_cached")]:
        setattr(rotary, name, rotary.original_max_seq_len)
