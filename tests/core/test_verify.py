"""The verification rules, by exact enumeration: what they emit is distributed as the target's own text.

The rules are step functions of their uniforms. `cells` cuts [0, 1) at (at least) the steps, so that the rule called at
the midpoint of each cell, weighted with its width, gives probabilities without any sampling error.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from random_trees import distributions, make_tree, path_to, rows, token_paths, trees
from slipstream.core.rules import Candidates
from slipstream.core.tree import DraftTree, ancestor_mask, chain
from slipstream.core.verify import (
    choose_chain,
    choose_coupled,
    choose_greedy,
    choose_one_hot,
    draw,
    or_no_token,
    walk,
)
from slipstream.drafting.growth import Frontier, grow
from slipstream.drafting.shape import Dynamic

ALMOST_ONE = 1.0 - 2.0**-53  # the largest uniform
TOLERANCE = 1e-12

Path = tuple[int, ...]
Law = dict[Path, float]
Model = Callable[[Path], list[float]]  # the distribution of the next token after a path


# -- what the tests are made of -----------------------------------------------------------------------------------


def cells(steps: Iterable[float]) -> list[tuple[float, float]]:
    """(midpoint, width) of the pieces into which `steps` cut [0, 1)."""
    edges = sorted({0.0, 1.0, *(step for step in steps if 0.0 < step < 1.0)})
    return [((low + high) / 2, high - low) for low, high in itertools.pairwise(edges) if high - low > 1e-14]


def inversion_steps(weights: Sequence[float]) -> list[float]:
    """Where inversion goes from one token to the next."""
    total = sum(weights)
    return [part / total for part in itertools.accumulate(weights)] if total > 0 else []


def random_model(seed: int, vocab_size: int) -> Model:
    """A fixed random distribution after every path, zeros among the probabilities."""

    @functools.cache
    def model(path: Path) -> list[float]:
        rng = random.Random(f"{seed}{path}")
        weights = [rng.choice([0, 1, 2, 3, 8]) for _ in range(vocab_size)]
        weights[rng.randrange(vocab_size)] += 1
        return [weight / sum(weights) for weight in weights]

    return model


def plain_law(p: Model, vocab_size: int, length: int) -> Law:
    """The law of plain decoding's first `length` tokens: p(x1) p(x2 | x1) ..."""
    law = {(): 1.0}
    for _ in range(length):
        law = {(*path, x): weight * p(path)[x] for path, weight in law.items() for x in range(vocab_size)}
    return law


def continued(law: Law, p: Model, vocab_size: int, length: int) -> Law:
    """A law of texts of several lengths, each continued by plain decoding up to `length`."""
    result: defaultdict[Path, float] = defaultdict(float)
    for path, weight in law.items():
        for tail, rest in plain_law(lambda later, path=path: p(path + later), vocab_size, length - len(path)).items():
            result[path + tail] += weight * rest
    return result


def distance(one: Law, other: Law) -> float:
    """Largest difference of probability."""
    return max(abs(one.get(path, 0.0) - other.get(path, 0.0)) for path in {*one, *other})


ChainRule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def row_laws(rule: ChainRule, tokens: Sequence[int], q: list[list[float]], p: list[list[float]]) -> list[list[float]]:
    """The law of the choice in every row of one chain, [n + 1][vocab]: each row depends on its own uniforms only."""
    laws = []
    for row in range(len(tokens) + 1):
        last = row == len(tokens)
        residual = p[row] if last else [max(a - b, 0.0) for a, b in zip(p[row], q[row], strict=True)]
        accept = cells([] if last else [a / b for a, b in zip(p[row], q[row], strict=True) if b > 0])
        pieces = list(itertools.product(accept, cells(inversion_steps(residual) + inversion_steps(p[row]))))
        law = [0.0] * len(p[row])
        for (u_accept, width), (u_next, other_width) in pieces:
            n = len(tokens)
            choice = rule(
                torch.tensor(tokens, dtype=torch.int64),
                rows(*q[:n]) if n else torch.empty(0, len(p[row]), dtype=torch.float64),
                rows(*p),
                torch.full((n,), u_accept, dtype=torch.float64),
                torch.full((n + 1,), u_next, dtype=torch.float64),
            )
            law[choice[row]] += width * other_width
        laws.append(law)
    return laws


def emitted_law(tokens: Sequence[int], laws: list[list[float]]) -> Law:
    """The law of what a chain emits: follow the draft while it carries the choice, then stop with that choice."""
    law: Law = {}
    reach = 1.0
    for row, choices in enumerate(laws):
        drafted = tokens[row] if row < len(tokens) else None
        for token, weight in enumerate(choices):
            if token != drafted and weight:
                law[(*tokens[:row], token)] = reach * weight
        reach *= choices[drafted] if drafted is not None else 0.0
    return law


def drafted_chains(q: Model, vocab_size: int, length: int, unsure: float, drop: bool = False) -> Law:
    """Every chain that may be drafted from q: up to `length` tokens, ending after one less probable than `unsure`.

    drop: the fault of leaving that token out of the draft.
    """
    done: defaultdict[Path, float] = defaultdict(float)
    alive: Law = {(): 1.0}
    for depth in range(1, length + 1):
        drawn = {
            (*path, x): weight * q(path)[x] for path, weight in alive.items() for x in range(vocab_size) if q(path)[x]
        }
        alive = {}
        for path, weight in drawn.items():
            exits = q(path[:-1])[path[-1]] < unsure
            if exits or depth == length:
                done[path[:-1] if exits and drop else path] += weight
            else:
                alive[path] = weight
    return done


def speculated_law(rule: ChainRule, p: Model, q: Model, chains: Law, vocab_size: int, length: int) -> Law:
    """The law of the first `length` tokens when a cycle with one of `chains` is followed by plain decoding."""
    law: defaultdict[Path, float] = defaultdict(float)
    for tokens, probability in chains.items():
        prefixes = [tokens[:depth] for depth in range(len(tokens) + 1)]
        laws = row_laws(rule, tokens, [q(path) for path in prefixes], [p(path) for path in prefixes])
        for path, weight in emitted_law(tokens, laws).items():
            law[path] += probability * weight
    return continued(law, p, vocab_size, length)


# -- chains -------------------------------------------------------------------------------------------------------


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    vocab_size = draw(st.integers(3, 5))
    return draw(distributions(vocab_size)), draw(distributions(vocab_size))


@settings(max_examples=60, deadline=None)
@given(pairs())
def test_one_sampled_token_comes_out_distributed_as_p(pair: tuple[list[float], list[float]]) -> None:
    p, q = pair
    out = torch.zeros(len(p), dtype=torch.float64)
    for x, probability in enumerate(q):
        if probability:
            law, bonus = row_laws(choose_chain, [x], [q], [p, p])
            out += probability * torch.tensor(law, dtype=torch.float64)
            torch.testing.assert_close(rows(bonus), rows(p), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(out, rows(p)[0], rtol=0, atol=TOLERANCE)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.4, 1.1]))
def test_chains_that_exit_when_unsure_keep_the_joint_law(seed: int, unsure: float) -> None:
    """Chains of one to three tokens whose length depends on the tokens drawn, the unsure one verified too."""
    p, q = random_model(seed, 3), random_model(seed + 1, 3)
    chains = drafted_chains(q, 3, length=2, unsure=unsure)
    law = speculated_law(choose_chain, p, q, chains, 3, length=3)
    assert distance(law, plain_law(p, 3, 3)) < TOLERANCE


def test_the_exiting_chains_of_the_test_have_several_lengths() -> None:
    chains = drafted_chains(random_model(2, 4), 4, length=3, unsure=0.3)
    assert {len(path) for path in chains} == {1, 2, 3}
    assert sum(chains.values()) == pytest.approx(1.0)
    law = speculated_law(choose_chain, random_model(1, 4), random_model(2, 4), chains, 4, length=4)
    assert distance(law, plain_law(random_model(1, 4), 4, 4)) < TOLERANCE


def test_dropping_the_unsure_token_is_seen_as_bias() -> None:
    p, q = random_model(1, 3), random_model(2, 3)
    chains = drafted_chains(q, 3, length=2, unsure=0.4, drop=True)
    assert distance(speculated_law(choose_chain, p, q, chains, 3, 3), plain_law(p, 3, 3)) > 0.01


def with_p_as_residual(tokens: Tensor, q: Tensor, p: Tensor, u_accept: Tensor, u_next: Tensor) -> Tensor:
    """A fault: the recovered token is drawn from p instead of norm(max(p - q, 0))."""
    accepted = u_accept * q.gather(1, tokens[:, None])[:, 0] < p[:-1].gather(1, tokens[:, None])[:, 0]
    choice = draw(p, u_next)
    choice[:-1] = torch.where(accepted, tokens, choice[:-1])
    return choice


def test_a_biased_residual_is_seen_as_bias() -> None:
    p, q = random_model(1, 3), random_model(2, 3)
    chains = drafted_chains(q, 3, length=2, unsure=0.0)
    assert distance(speculated_law(with_p_as_residual, p, q, chains, 3, 3), plain_law(p, 3, 3)) > 0.01


def test_children_sampled_then_reranked_by_q_are_seen_as_bias() -> None:
    """Two children drawn without replacement from q, the likelier kept: whether a token is verified depends on the draw
    itself, and no residual rule mends that. Hence deterministic children in reranked trees."""
    p, q = [0.2, 0.5, 0.3], [0.6, 0.3, 0.1]
    out = [0.0, 0.0, 0.0]
    for first, second in itertools.permutations(range(3), 2):
        probability = q[first] * q[second] / (1.0 - q[first])
        kept = max(first, second, key=lambda x: q[x])
        for x, weight in enumerate(row_laws(choose_chain, [kept], [q], [p, p])[0]):
            out[x] += probability * weight
    assert out == pytest.approx([0.308, 0.384, 0.308], abs=1e-3)


@given(pairs(), st.sampled_from([0.0, 0.5, ALMOST_ONE]), st.sampled_from([0.0, 0.5, ALMOST_ONE]))
def test_a_chain_never_emits_what_the_target_rules_out(
    pair: tuple[list[float], list[float]], u_accept: float, u_next: float
) -> None:
    p, q = pair
    for x in range(len(q)):
        u = torch.tensor([u_accept, u_next, u_next], dtype=torch.float64)
        choice = choose_chain(torch.tensor([x]), rows(q), rows(p, p), u[:1], u[1:])
        assert all(p[token] > 0 for token in choice.tolist())


@given(distributions(4), st.sampled_from([0.0, 0.5, ALMOST_ONE]))
def test_a_drafter_equal_to_the_target_is_always_accepted(p: list[float], u: float) -> None:
    uniform = torch.full((2,), u, dtype=torch.float64)
    for x in (x for x in range(4) if p[x] > 0):
        assert choose_chain(torch.tensor([x]), rows(p), rows(p, p), uniform[:1], uniform)[0] == x


# -- trees with deterministic children ------------------------------------------------------------------------------


def one_hot_laws(tree: DraftTree, p: list[list[float]]) -> Tensor:
    """The law of the choice at the root and every node, [n + 1, vocab]. Rows use uniforms of their own, so one call of
    the rule can try a different cell in every row."""
    parents, tokens = tree.parents.tolist(), tree.tokens.tolist()
    pieces: list[list[tuple[tuple[tuple[float, float], ...], tuple[float, float]]]] = []
    children = [[i for i, parent in enumerate(parents) if parent + 1 == row] for row in range(len(parents) + 1)]
    for row, nodes in enumerate(children):
        left, accept = list(p[row]), []
        for node in nodes:
            mass, total = left[tokens[node]], sum(left)
            accept.append(cells([mass / total] if total > 0 else []))
            left[tokens[node]] = 0.0
        pieces.append(list(itertools.product(itertools.product(*accept), cells(inversion_steps(left)))))
    laws = torch.zeros(len(p), len(p[0]), dtype=torch.float64)
    for call in range(max(map(len, pieces))):
        u_accept, u_next = torch.zeros(len(parents)).double(), torch.zeros(len(p)).double()
        for row, row_pieces in enumerate(pieces):
            accept_cells, (u_next[row], _) = row_pieces[min(call, len(row_pieces) - 1)]
            for node, (middle, _) in zip(children[row], accept_cells, strict=True):
                u_accept[node] = middle
        choice = choose_one_hot(tree, rows(*p), u_accept, u_next)
        for row, row_pieces in enumerate(pieces):
            if call < len(row_pieces):
                accept_cells, (_, width) = row_pieces[call]
                laws[row, choice[row]] += width * math.prod(width for _, width in accept_cells)
    return laws


@settings(max_examples=60, deadline=None)
@given(trees(max_nodes=8, vocab_size=4), st.data())
def test_choices_in_any_tree_are_distributed_as_p(tree: DraftTree, data: st.DataObject) -> None:
    p = [data.draw(distributions(4)) for _ in range(tree.num_nodes + 1)]
    torch.testing.assert_close(one_hot_laws(tree, p), rows(*p), rtol=0, atol=TOLERANCE)


def grown(q: Model, shape: Dynamic) -> DraftTree:
    """The reranked dynamic tree of a drafter with distributions q."""
    paths: list[Path] = []

    def expand(frontier: Frontier, k: int) -> Candidates:
        for token, parent_row in zip(frontier.tokens.tolist(), frontier.parent_rows.tolist(), strict=True):
            paths.append((*paths[parent_row], token) if frontier.depth else ())
        table = torch.tensor([q(path) for path in paths[-frontier.tokens.shape[0] :]])
        top = table.log().topk(min(k, table.shape[1]))
        return Candidates(top.indices, top.values)

    return grow(expand, torch.tensor([0]), shape)


def tree_law(tree: DraftTree, p: Model, vocab_size: int, length: int) -> Law:
    """The law of what a tree emits, followed by plain decoding: choices from `one_hot_laws`, path from `walk`."""
    paths: list[Path] = [(), *token_paths(tree)]
    laws = one_hot_laws(tree, [p(path) for path in paths]).tolist()
    law: Law = {}
    for row, path in enumerate(paths):
        for token in range(vocab_size):
            if (*path, token) in paths:
                continue
            choice = torch.full((len(paths),), token)  # the choices that emit path + token: each ancestor's next token
            for above in range(len(path)):
                choice[paths.index(path[:above])] = path[above]
            kept = walk(tree, choice)
            assert [int(tree.tokens[i]) for i in kept.order[: int(kept.num_accepted)]] == list(path)
            reach = math.prod(laws[paths.index(path[:above])][path[above]] for above in range(len(path)))
            law[(*path, token)] = reach * laws[row][token]
    return continued(law, p, vocab_size, length)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9))
def test_reranked_dynamic_trees_keep_the_joint_law(seed: int, width: int, depth: int, total: int) -> None:
    p, q = random_model(seed, 3), random_model(seed + 1, 3)
    tree = grown(q, Dynamic(width=width, depth=depth, total=total))
    assert distance(tree_law(tree, p, 3, 4), plain_law(p, 3, 4)) < TOLERANCE


def test_the_order_of_children_in_the_tree_counts() -> None:
    """The enumeration sees which child is tried first: with the same uniforms the other order chooses differently."""
    p, u = rows([0.5, 0.5, 0.0], [1, 0, 0], [1, 0, 0]), torch.zeros(3).double()
    assert choose_one_hot(make_tree([-1, -1], [0, 1]), p, u[:2], u)[0] == 0
    assert choose_one_hot(make_tree([-1, -1], [1, 0]), p, u[:2], u)[0] == 1


@given(trees(max_nodes=6, vocab_size=4), st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_a_tree_never_emits_what_the_target_rules_out(tree: DraftTree, data: st.DataObject, dtype: torch.dtype) -> None:
    """Whatever the uniforms, and however the probabilities round."""
    p = rows(*(data.draw(distributions(4)) for _ in range(tree.num_nodes + 1))).to(dtype)
    u = st.sampled_from([0.0, 0.5, ALMOST_ONE])
    u_accept = torch.tensor([data.draw(u) for _ in range(tree.num_nodes)], dtype=torch.float64)
    u_next = torch.tensor([data.draw(u) for _ in range(tree.num_nodes + 1)], dtype=torch.float64)
    choice = choose_one_hot(tree, p, u_accept, u_next)
    assert p.gather(1, choice[:, None]).gt(0).all()


def test_a_row_that_is_no_distribution_spoils_no_other() -> None:
    tree = make_tree([-1, -1, 0], [0, 1, 2])
    p = torch.tensor([[0.5, 0.3, 0.2]] * 4, dtype=torch.float64)
    u = torch.full((4,), 0.25, dtype=torch.float64)
    whole = choose_one_hot(tree, p, u[:3], u)
    p[1] = torch.nan  # of node 0, which has a child
    assert choose_one_hot(tree, p, u[:3], u)[[0, 2, 3]].tolist() == whole[[0, 2, 3]].tolist() == [0, 0, 0]


def test_a_tree_that_offers_the_whole_vocabulary_always_has_a_child_accepted() -> None:
    """1 - (0.1 + 0.6) is more than 0.3 in binary: what is left for the last child must still be its mass."""
    tree = make_tree([-1, -1, -1], [0, 1, 2])
    p = rows([0.1, 0.6, 0.3, 0.0], *[[1.0, 0.0, 0.0, 0.0]] * 3)
    u = torch.full((4,), ALMOST_ONE, dtype=torch.float64)
    assert choose_one_hot(tree, p, u[:3], u)[0] == 2


# -- walking, drawing, greedy and coupled choices -------------------------------------------------------------------


def naive_walk(tree: DraftTree, choice: list[int]) -> list[int]:
    parents, tokens = tree.parents.tolist(), tree.tokens.tolist()
    path: list[int] = []
    while True:
        at = path[-1] if path else -1
        nodes = [i for i in range(tree.num_nodes) if parents[i] == at and tokens[i] == choice[at + 1]]
        if not nodes:
            return path
        path += nodes


@given(trees(vocab_size=3), st.data(), st.booleans())
def test_walk_follows_the_choices_from_the_root(tree: DraftTree, data: st.DataObject, mask_given: bool) -> None:
    choice = [data.draw(st.integers(0, 2)) for _ in range(tree.num_nodes + 1)]
    kept = walk(tree, torch.tensor(choice), ancestor_mask(tree.parents) if mask_given else None)
    path = kept.order[: int(kept.num_accepted)].tolist()
    assert path == naive_walk(tree, choice)
    assert path == (path_to(tree.parents.tolist(), path[-1]) if path else [])
    assert sorted(kept.order.tolist()) == list(range(tree.num_nodes))


def test_walk_does_not_pick_up_a_right_node_under_a_wrong_one() -> None:
    tree = chain(torch.tensor([1, 2, 3]))
    assert walk(tree, torch.tensor([1, 0, 3, 0])).num_accepted == 1
    assert walk(tree, torch.tensor([0, 2, 3, 0])).num_accepted == 0


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=6).filter(any),
    st.one_of(st.just(0.0), st.just(ALMOST_ONE), st.floats(0, 1, exclude_max=True)),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_draw_never_returns_a_token_without_weight(weights: list[int], u: float, dtype: torch.dtype) -> None:
    token = int(draw(torch.tensor([weights], dtype=dtype) / 7, torch.tensor([u], dtype=torch.float64)))
    assert weights[token] > 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
def test_draw_gives_each_token_its_share(weights: list[int]) -> None:
    pieces = cells(inversion_steps(weights))
    u = torch.tensor([middle for middle, _ in pieces], dtype=torch.float64)
    tokens = draw(torch.tensor(weights).double().expand(len(pieces), -1), u).tolist()
    share = [0.0] * len(weights)
    for token, (_, width) in zip(tokens, pieces, strict=True):
        share[token] += width
    assert share == pytest.approx([weight / sum(weights) for weight in weights])


def test_greedy_takes_the_first_of_equals() -> None:
    assert choose_greedy(torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0], [-3.0, -2.0, -1.0]])).tolist() == [1, 0, 2]


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]))
def test_coupled_choice_is_the_argmax_of_log_p_plus_noise(seed: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 6, generator=rng).to(dtype)
    noise = torch.randn(4, 6, generator=rng, dtype=torch.float64)
    logits[:, 2] = -math.inf
    log_p = logits.double().log_softmax(dim=-1)
    expected = [max(range(6), key=lambda x: float(log_p[row, x] + noise[row, x])) for row in range(4)]
    choice = choose_coupled(logits, noise)
    assert choice.tolist() == expected
    assert 2 not in choice
    assert choose_coupled(logits.double() + 3.5, noise).tolist() == expected  # a constant per row changes nothing


# -- trees that are filled up to a size ---------------------------------------------------------------------------


def accepted(tree: DraftTree, choice: Tensor) -> tuple[list[int], int]:
    """The path that is walked, and the token after it."""
    found = walk(tree, choice)
    path = found.order[: int(found.num_accepted)].tolist()
    return path, int(choice[path[-1] + 1 if path else 0])


def filled(values: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`values` with random rows behind them up to `count`."""
    more = torch.rand(count - values.shape[0], *values.shape[1:], generator=generator, dtype=values.dtype)
    return torch.cat((values, more))


@settings(max_examples=150, deadline=None)
@given(trees(max_nodes=7, vocab_size=4), st.integers(1, 6), st.integers(0, 2**32))
def test_no_rule_takes_a_node_that_fills_a_tree_up(tree: DraftTree, more: int, seed: int) -> None:
    """Greedy, coupled and one-hot: the same tokens, the same path, the same next token, whatever such nodes see."""
    generator, n, vocab = torch.Generator().manual_seed(seed), tree.num_nodes, 4
    total = n + more
    padded = tree.padded(1 + total)
    p = torch.rand(n + 1, vocab, generator=generator, dtype=torch.float64)
    noise = torch.rand(n + 1, vocab, generator=generator, dtype=torch.float64)
    u_accept, u_next = (torch.rand(count, generator=generator, dtype=torch.float64) for count in (n, n + 1))
    p_filled, noise_filled = (filled(one, total + 1, generator) for one in (p, noise))
    p_filled[n + 1 :, 0] += 9.0  # such a node's own choice is its token
    uniforms = filled(u_accept, total, generator), filled(u_next, total + 1, generator)
    pairs = [
        (choose_greedy(p), choose_greedy(p_filled)),
        (choose_coupled(p.log(), noise), choose_coupled(p_filled.log(), noise_filled)),
        (choose_one_hot(tree, p, u_accept, u_next), choose_one_hot(padded, p_filled, *uniforms)),
    ]
    for choice, choice_filled in pairs:
        assert torch.equal(choice_filled[: n + 1], choice)
        assert accepted(padded, choice_filled) == accepted(tree, choice)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 5), st.integers(1, 4), st.integers(0, 2**32))
def test_a_sampled_chain_that_is_filled_up_ends_where_it_did(n: int, more: int, seed: int) -> None:
    """The row after its last token gives the bonus token still."""
    generator, vocab, total = torch.Generator().manual_seed(seed), 4, n + more
    q = torch.rand(n, vocab, generator=generator, dtype=torch.float64).softmax(dim=1)
    p = torch.rand(n + 1, vocab, generator=generator, dtype=torch.float64).softmax(dim=1)
    u_accept, u_next = (torch.rand(count, generator=generator, dtype=torch.float64) for count in (n, n + 1))
    tree = chain(torch.randint(vocab, (n,), generator=generator), q=q)
    padded = tree.padded(1 + total)
    choice = choose_chain(tree.tokens, q, p, u_accept, u_next)
    uniforms = filled(u_accept, total, generator), filled(u_next, total + 1, generator)
    choice_filled = choose_chain(padded.tokens, padded.q, filled(p, total + 1, generator), *uniforms)
    assert torch.equal(choice_filled[: n + 1], choice)
    assert accepted(padded, choice_filled) == accepted(tree, choice)


@settings(max_examples=100, deadline=None)
@given(st.lists(trees(max_nodes=6, vocab_size=4), min_size=2, max_size=3), st.integers(0, 2**32))
def test_stacked_trees_are_verified_as_each_alone(several: list[DraftTree], seed: int) -> None:
    generator, size = torch.Generator().manual_seed(seed), max(tree.num_nodes for tree in several)
    padded = [tree.padded(1 + size) for tree in several]
    names = ("tokens", "parents", "depth", "log_value")
    fields = [torch.stack([getattr(tree, name) for tree in padded]) for name in names]
    stacked = DraftTree(*fields, max_depth=max(tree.max_depth for tree in padded))
    assert torch.equal(ancestor_mask(stacked.parents), torch.stack([ancestor_mask(tree.parents) for tree in padded]))
    count = len(padded)
    p = torch.rand(count, size + 1, 4, generator=generator, dtype=torch.float64).softmax(dim=-1)
    q = torch.rand(count, size, 4, generator=generator, dtype=torch.float64).softmax(dim=-1)
    u_accept, u_next = (torch.rand(count, n, generator=generator, dtype=torch.float64) for n in (size, size + 1))
    choices = choose_one_hot(stacked, p, u_accept, u_next)
    found = walk(stacked, choices)
    chains = choose_chain(stacked.tokens, q, p, u_accept, u_next)
    for index, tree in enumerate(padded):
        one = p[index], u_accept[index], u_next[index]
        assert torch.equal(choices[index], choose_one_hot(tree, *one))
        assert torch.equal(chains[index], choose_chain(tree.tokens, q[index], *one))
        alone = walk(tree, choices[index])
        assert int(found.num_accepted[index]) == int(alone.num_accepted)
        assert torch.equal(found.order[index], alone.order)
    assert torch.equal(choose_greedy(p), torch.stack([choose_greedy(one) for one in p]))
    assert torch.equal(or_no_token(choices, p.log()), torch.stack(list(map(or_no_token, choices, p.log()))))
