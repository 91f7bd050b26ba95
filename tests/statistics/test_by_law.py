"""Guesses drawn by their law against those that estimators make, by Kolmogorov-Smirnov at 10⁴ repeats.

A repeat is a sample of 16 guesses in 4 groups. What is compared in each layer, and in all together: the numbers of a
guess, the squared-bias statistic (mean over pairs of the Gram matrix of group means), and its joint law with the norms.
Two laws whose distribution functions differ by 0.03 are told apart. Then the same comparison must reject laws that are
wrong in one place. Layers have 1, 2, 3 and more weights: a dimension more or less shows in few dimensions.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import Averaged, FiniteDifference, MultiTangent, WeightPerturbation, label
from fganalysis.estimators.noise import ON_SPHERE
from fganalysis.measuring import by_law, drawn_lengths
from fganalysis.measuring.blocks import Seeds
from fganalysis.measuring.by_law import law_of, raw_numbers
from fganalysis.measuring.drawn_lengths import Array, Exact, Sum, Vectors
from tests import laws

REPEATS, GROUPS, IN_GROUP = 10_000, 4, 4
# About 2500 comparisons of right laws: one in 40 runs with other seeds would have a smaller p-value by chance.
LEAST_P = 1e-5

NARROW = laws.tiny_snapshot((1, 1, 3, 2), n_examples=3)  # 1, 3 and 6 weights
PAIRS = laws.tiny_snapshot((2, 1, 2), n_examples=3)  # 2 and 2 weights


def dead_layer() -> Snapshot:
    """A ReLU network whose first layer has no gradient, and with it all of the second but its biases."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 3)).double()
    with torch.no_grad():
        network[0].bias.fill_(-100.0)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    return fga.capture(network, torch.nn.functional.cross_entropy, inputs, torch.tensor([0, 1, 0, 1]))


DEAD = dead_layer()

Numbers = tuple[Array, Array, Array]  # p and q, (repeat, layer, guess); K, (repeat, layer, group, group); "all" last


def direct(estimator: Any, snapshot: Snapshot) -> Numbers:
    """From guesses that the estimator writes out."""
    n_averaged = 1
    if isinstance(estimator, Averaged):  # One by one it would take minutes; a mean of guesses is their mean.
        estimator, n_averaged = estimator.estimator, estimator.n_averaged
    generator = torch.Generator().manual_seed(1)
    n_guesses = REPEATS * GROUPS * IN_GROUP
    with torch.no_grad():
        dense = estimator(snapshot, n_guesses * n_averaged, generator).dense(snapshot)[1].numpy()
    guesses = dense.reshape(n_guesses, n_averaged, -1).mean(1).reshape(REPEATS, GROUPS * IN_GROUP, -1)
    first = np.cumsum([0, *(gradient.numel() for gradient in snapshot.weight_gradients)])
    p, q, grams = [], [], []
    for layer, gradient in enumerate(snapshot.weight_gradients):
        exact, own = gradient.flatten().numpy(), guesses[..., first[layer] : first[layer + 1]]
        p.append(own @ exact)
        q.append((own**2).sum(-1))
        errors = own.reshape(REPEATS, IN_GROUP, GROUPS, -1).mean(1) - exact
        grams.append(errors @ errors.transpose(0, 2, 1))
    return with_all(p), with_all(q), with_all(grams)


def with_all(by_layer: list[Array]) -> Array:
    return np.stack([*by_layer, np.sum(by_layer, axis=0)], axis=1)


def exact_of(snapshot: Snapshot) -> Exact:
    gradients = snapshot.weight_gradients
    norms = np.array([gradient.double().norm().item() for gradient in gradients])
    return Exact(np.array([gradient.numel() for gradient in gradients]), norms)


def drawn(estimator: Any, snapshot: Snapshot) -> Numbers:
    """By the law, all repeats at once."""
    law, exact, generator = law_of(estimator), exact_of(snapshot), np.random.default_rng(2)
    places, n_layers = REPEATS * GROUPS, len(exact.sizes)
    guesses = drawn_lengths.guesses(law, exact, places * IN_GROUP, generator)
    total = by_law.Sum(n_layers, places)
    for start in range(0, places * IN_GROUP, places):
        total.add(guesses.between(start, start + places))
    grams, counts = [], np.full(GROUPS, float(IN_GROUP))
    for start in range(0, places, GROUPS):
        sample = Sum(n_layers, GROUPS)
        sample.along, sample.across = (part[:, start : start + GROUPS] for part in (total.along, total.across))
        grams.append(by_law.gram_of_errors(sample, counts, exact, generator))

    def by_repeat(numbers: Array) -> Array:
        by_place = numbers.reshape(n_layers, IN_GROUP, REPEATS, GROUPS)
        return with_all(list(by_place.transpose(0, 2, 1, 3).reshape(n_layers, REPEATS, -1)))

    inner = guesses.along * exact.norms[:, None]
    return by_repeat(inner), by_repeat(guesses.squared_norms), with_all(list(np.stack(grams, axis=1)))


def sampled(estimator: Any, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> Numbers:
    """By the law, as `fganalysis.sample` draws it, repeat by repeat."""
    monkeypatch.setattr(by_law, "MOST_GROUPS", GROUPS)
    monkeypatch.setattr(by_law, "GUESSES_PER_GROUP", IN_GROUP)
    monkeypatch.setattr(by_law, "LARGEST_BLOCK", GROUPS * IN_GROUP)
    exact, seeds = exact_of(snapshot), Seeds(0, 0, "test", torch.device("cpu"))
    squares = np.stack([np.full(len(exact.sizes) + 1, np.nan), np.append(exact.norms**2, (exact.norms**2).sum())])
    repeats = [
        raw_numbers(law_of(estimator), exact.sizes, squares, GROUPS * IN_GROUP, replace(seeds, step=step), workers=1)
        for step in range(REPEATS)
    ]
    p, q, gram = (
        np.stack([getattr(raw, name)[1] for raw in repeats]) for name in ("inner_product", "squared_norm", "gram")
    )
    return p, q, gram


def statistics(numbers: Numbers, squared_gradient: Array) -> dict[str, Array]:
    """What is compared, (repeat, layer), in units of the gradient of all layers."""
    p, q, gram = numbers[0] / squared_gradient[-1], numbers[1] / squared_gradient[-1], numbers[2] / squared_gradient[-1]
    diagonal = np.einsum("rlaa->rl", gram)
    statistic = (gram.sum((2, 3)) - diagonal) / (GROUPS * (GROUPS - 1))
    norm, slope = q.mean(-1), p.mean(-1)
    lengths = np.sqrt(np.maximum(q[..., 0] * squared_gradient, 0) / squared_gradient[-1])
    cosine = np.divide(p[..., 0], lengths, out=np.zeros_like(lengths), where=lengths > 1e-12)
    found = {
        "inner product": p[..., 0],
        "norm": np.sqrt(q[..., 0]),
        "cosine": cosine,
        "mean norm": norm,
        "squared bias": statistic,
        "length of means": diagonal,
        "one product": gram[:, :, 0, 1],
        "three groups": gram[:, :, 0, 1] * gram[:, :, 1, 2] * gram[:, :, 0, 2],
        "squared bias, mean norm": statistic / np.maximum(norm, 1e-12),
        "length of means, mean norm": diagonal / np.maximum(norm, 1e-12),
        "squared bias, slope": statistic * slope,
        "squared bias, first norm": statistic * q[..., 0],
        "other layers": statistic[:, -1:] * norm,
    }
    # Numbers that the law leaves no choice, such as the length of a guess of one weight, differ by rounding alone.
    return {name: np.round(values, 9) for name, values in found.items()}


def least_p_value(numbers: Numbers, reference: Numbers, snapshot: Snapshot) -> tuple[float, str]:
    """Of all comparisons, and what it was; the squared-bias statistic also where norms are long."""
    exact = np.array([float(gradient.square().sum()) for gradient in snapshot.weight_gradients])
    squares = np.append(exact, exact.sum())
    ours, theirs = statistics(numbers, squares), statistics(reference, squares)
    found = []
    for layer in range(len(squares)):
        median = np.median(theirs["mean norm"][:, layer])
        pairs = {name: (ours[name][:, layer], theirs[name][:, layer]) for name in ours}
        long = [part["mean norm"][:, layer] > median for part in (ours, theirs)]
        if min(map(np.sum, long)) > REPEATS / 3:
            both = zip((ours, theirs), long, strict=True)
            pairs["squared bias, long"] = tuple(part["squared bias"][:, layer][these] for part, these in both)
        for name, pair in pairs.items():
            found.append((float(stats.ks_2samp(*pair, method="asymp").pvalue), f"{name}, layer {layer}"))
    return min(found)


SPHERE = ON_SPHERE
CASES = [
    (WeightPerturbation(), NARROW),
    (WeightPerturbation(), PAIRS),
    (WeightPerturbation(), DEAD),
    (WeightPerturbation(layers="separate"), NARROW),
    (WeightPerturbation(SPHERE), NARROW),
    (WeightPerturbation(SPHERE), PAIRS),
    (WeightPerturbation(SPHERE, layers="separate"), NARROW),
    (MultiTangent(3), NARROW),
    (MultiTangent(3, noise=SPHERE), PAIRS),
    (MultiTangent(3, layers="separate"), NARROW),
    (MultiTangent(3, noise=SPHERE, layers="separate"), NARROW),
    (MultiTangent(3, "orthogonal"), NARROW),
    (MultiTangent(1, "orthogonal"), PAIRS),
    (MultiTangent(2, "orthogonal"), DEAD),
    (MultiTangent(2, "orthogonal", layers="separate"), PAIRS),
    (MultiTangent(1, "orthogonal", SPHERE, layers="separate"), NARROW),
    (MultiTangent(3, "orthogonal", SPHERE), NARROW),
    (MultiTangent(2, "orthogonal", SPHERE), PAIRS),
    (FiniteDifference(epsilon=1e-4), NARROW),
    (FiniteDifference(epsilon=1e-4, noise=SPHERE), PAIRS),
    (Averaged(WeightPerturbation(SPHERE), 3), NARROW),
    (Averaged(MultiTangent(2), 2), PAIRS),
    (Averaged(MultiTangent(2, "orthogonal"), 2), NARROW),
    (Averaged(MultiTangent(2, "orthogonal", SPHERE), 2), NARROW),
]


@pytest.mark.parametrize(("estimator", "snapshot"), CASES, ids=lambda part: label(part) if callable(part) else "")
def test_the_law_is_that_of_the_estimators_guesses(estimator: Any, snapshot: Snapshot) -> None:
    found = least_p_value(drawn(estimator, snapshot), direct(estimator, snapshot), snapshot)
    assert found[0] > LEAST_P, found


def test_a_sample_has_the_law_of_the_estimators_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    found = least_p_value(sampled(MultiTangent(2), NARROW, monkeypatch), direct(MultiTangent(2), NARROW), NARROW)
    assert found[0] > LEAST_P, found


Patch = Callable[[pytest.MonkeyPatch], None]


def a_dimension_more(monkeypatch: pytest.MonkeyPatch) -> None:
    across = drawn_lengths._across
    monkeypatch.setattr(drawn_lengths, "_across", lambda sizes, *rest: across(sizes + 1, *rest))


def a_dimension_less(monkeypatch: pytest.MonkeyPatch) -> None:
    across = drawn_lengths._across
    monkeypatch.setattr(drawn_lengths, "_across", lambda sizes, *rest: across(np.maximum(sizes - 1, 1), *rest))


def sums_in_another_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lengths stay, and the angle to the sum has a dimension more."""
    tangents = drawn_lengths._tangents

    def turned(law: Any, exact: Exact, n_guesses: int, generator: np.random.Generator) -> Vectors:
        vectors = tangents(law, exact, n_guesses, generator)
        across = np.sqrt(vectors.forward**2 + vectors.sideways)
        return drawn_lengths._in_a_direction(vectors.along, across, exact.sizes + 1, generator)

    monkeypatch.setattr(drawn_lengths, "_tangents", turned)


def groups_in_another_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    unit_vectors = drawn_lengths.unit_vectors
    monkeypatch.setattr(drawn_lengths, "unit_vectors", lambda n, dim, generator: unit_vectors(n, dim + 1, generator))


def groups_that_are_not_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two share their direction in a repeat of ten."""
    unit_vectors = drawn_lengths.unit_vectors

    def shared(number: int, dimension: int, generator: np.random.Generator) -> Array:
        vectors = unit_vectors(number, dimension, generator)
        if generator.random() < 0.1:
            vectors[1] = vectors[0]
        return vectors

    monkeypatch.setattr(drawn_lengths, "unit_vectors", shared)


def along_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means differ from the gradient across it alone."""

    def without(total: Sum, counts: Array, exact: Exact, generator: np.random.Generator) -> Array:
        total.along = counts * np.repeat(exact.norms[:, None], len(counts), axis=1)
        return drawn_lengths.gram_of_errors(total, counts, exact, generator)

    monkeypatch.setattr(by_law, "gram_of_errors", without)


def groups_of_other_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both laws are right, and not their joint law: the sums are of guesses that nobody sees."""

    class Other(Sum):
        def add(self, vectors: Vectors) -> None:
            unseen = np.random.default_rng(int(1e6 * abs(vectors.along[0, 0])))
            law, exact = law_of(WeightPerturbation()), exact_of(NARROW)
            super().add(drawn_lengths.guesses(law, exact, vectors.along.shape[1], unseen))

    monkeypatch.setattr(by_law, "Sum", Other)


def one_slope_for_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    tangents = drawn_lengths._tangents
    monkeypatch.setattr(drawn_lengths, "_tangents", lambda law, *rest: tangents(replace(law, layers="separate"), *rest))


@cache
def reference(snapshot: Snapshot) -> Numbers:
    return direct(WeightPerturbation(), snapshot)


@pytest.mark.parametrize(
    ("mistake", "snapshot"),
    [
        (a_dimension_more, NARROW),
        (a_dimension_less, NARROW),
        (sums_in_another_dimension, PAIRS),
        (groups_in_another_dimension, PAIRS),
        (groups_that_are_not_independent, NARROW),
        (along_left_out, NARROW),
        (groups_of_other_guesses, NARROW),
        (one_slope_for_each_layer, NARROW),
    ],
)
def test_a_wrong_law_is_rejected(mistake: Patch, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    found = least_p_value(drawn(WeightPerturbation(), snapshot), reference(snapshot), snapshot)
    assert found[0] < LEAST_P / 10, found


def test_marginal_laws_alone_do_not_show_what_joint_laws_do(monkeypatch: pytest.MonkeyPatch) -> None:
    groups_of_other_guesses(monkeypatch)
    squares = np.append(exact_of(NARROW).norms ** 2, (exact_of(NARROW).norms ** 2).sum())
    numbers = (drawn(WeightPerturbation(), NARROW), reference(NARROW))
    ours, theirs = (statistics(part, squares) for part in numbers)
    for name in ("norm", "cosine", "mean norm", "squared bias", "length of means"):
        for layer in range(len(squares)):
            assert stats.ks_2samp(ours[name][:, layer], theirs[name][:, layer], method="asymp").pvalue > LEAST_P
