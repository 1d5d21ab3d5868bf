"""The skip set for a target of which nothing is known but what its sub-layers weigh."""

from __future__ import annotations

from collections.abc import Sequence

from slipstream.errors import SkipSetError


def default_rule(
    attention_bytes: Sequence[int], mlp_bytes: Sequence[int], percent: int = 40
) -> tuple[list[int], list[int]]:
    """Which attention and MLP sub-layers to skip, knowing only what each weighs: (attention, mlp).

    Whole layers go first, for a layer that is skipped whole costs nothing at all: every second one, then, if that is
    not enough, those between (skipped neighbours hurt more than layers apart); nearest first to the point two thirds
    of the way up, around which trained transformers are most redundant. The first layer is never touched; the last one
    only where there are fewer than four. Of the layer that crosses `percent` of the layers' weight bytes, only the
    lightest sub-layer that still crosses it goes.

    Raises:
        SkipSetError: the layers that may go weigh less than `percent` of all.
    """
    num_layers = len(attention_bytes)
    left = -(-percent * (sum(attention_bytes) + sum(mlp_bytes)) // 100)  # bytes that are still to go, rounded up
    attention: list[int] = []
    mlp: list[int] = []
    for i in _by_redundancy(num_layers):
        if attention_bytes[i] + mlp_bytes[i] < left:
            attention.append(i)
            mlp.append(i)
            left -= attention_bytes[i] + mlp_bytes[i]
            continue
        light, heavy = sorted([(attention_bytes[i], attention), (mlp_bytes[i], mlp)], key=lambda part: part[0])
        for chosen in _lightest_cover(left, light, heavy):
            chosen.append(i)
        return sorted(attention), sorted(mlp)
    raise SkipSetError(
        f"no built-in skip set for this target of {num_layers} layers: those between the first and the last weigh less "
        f"than {percent} % of all. Give a skip set, or use another drafter."
    )


def _lightest_cover(left: int, light: tuple[int, list[int]], heavy: tuple[int, list[int]]) -> list[list[int]]:
    """Of one layer's two sub-layers the lightest choice that weighs at least `left`."""
    if light[0] >= left:
        return [light[1]]
    if heavy[0] >= left:
        return [heavy[1]]
    return [light[1], heavy[1]]


def _by_redundancy(num_layers: int) -> list[int]:
    """Layers that may be skipped, those that can best be spared first."""
    last = num_layers - 1 if num_layers >= 4 else num_layers
    centre = 2 * (num_layers - 1) / 3
    outward = sorted(range(1, last), key=lambda i: (abs(i - centre), i))
    return sorted(outward, key=lambda i: (i - outward[0]) % 2) if outward else []
