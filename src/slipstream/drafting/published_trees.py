"""Static trees that were published, as data.

A node is named by its path of ranks: (0, 2) is the third-best child of the best child of the root.

Medusa's (arXiv 2401.10774, section 2.3.3; the lists of the released code) have 63 nodes each, found by adding the node
of highest expected acceptance one after the other; ranks among siblings are always 0 .. count - 1, so numbers of
children are enough: a word holds those of one level's nodes in order (the first word the root's), `A` is ten, zeros at
the end of a word are left out. The names are those of the released lists.
"""

from __future__ import annotations

from slipstream.errors import unknown_choice

Path = tuple[int, ...]

EAGLE_1: tuple[Path, ...] = (
    *((0,), (1,), (2,), (3,)),
    *((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0)),
    *((0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1), (1, 0, 0)),
    *((0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2)),
    *((0, 0, 0, 0, 0), (0, 0, 0, 0, 1)),
)
"""The tree of EAGLE-1's released code (arXiv 2401.15077), drafted at every size of target: 25 nodes, 5 levels."""

DEFAULT = "mc_sim_7b_63"
"""Medusa's released default for every model."""

TREES = {
    "mc_sim_7b_63": "A A732111111 A32111110020000001 2",
    "vicuna_7b_stage1": "A A743221111 932111000020000001 1",
    "vicuna_7b_stage1_ablation": "A A422111 A4211100003100101 41100000001",
    "vicuna_7b_stage2": "A A5221111 9421110000310001 4110000001",
    "vicuna_13b_stage1": "A A74221111 A42111000021000001 1",
    "vicuna_13b_stage2": "A A42111 A4211100003100101 42100000001000000001",
    "vicuna_33b_stage1": "A A853221111 9321100000200000001",
    "vicuna_33b_stage2": "A A5321111 A421110000310001 31000000001",
    "zephyr_stage2": "A A6422111 A4211100002100001 21",
}


def published_tree(name: str) -> tuple[Path, ...]:
    """The tree of that name, a path of ranks per node, shallower nodes first. Raises InputError for an unknown name."""
    if name not in TREES:
        raise unknown_choice("Medusa tree", name, TREES)
    return expand(TREES[name])


def expand(counts: str) -> tuple[Path, ...]:
    """The nodes that numbers of children describe."""
    nodes: list[Path] = []
    level: list[Path] = [()]
    for word in counts.split():
        level = [(*parent, rank) for parent, count in zip(level, word, strict=False) for rank in range(int(count, 16))]
        nodes += level
    return tuple(nodes)
