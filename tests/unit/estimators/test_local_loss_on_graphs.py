"""Local losses on networks that are no chain of Linear modules: heads as torch modules, projections by autograd."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.estimators import LocalLoss, label, train_heads
from fganalysis.estimators.adam import AdamState
from tests.networks.by_hand import WRITTEN, Written, captured, skipping, written
from tests.networks.zoo import ZOO, build, normal, token_loss

Kind = Literal["linear", "mlp", "cnn"]


def guesses(estimator: LocalLoss, snapshot: Snapshot, n_guesses: int = 1) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = estimator(snapshot, n_guesses, torch.Generator().manual_seed(0)).guesses
    return found


def small(kind: Kind, **settings: Any) -> LocalLoss:
    return LocalLoss(kind, width=None if kind == "linear" else 5, **settings)


def heads_of(estimator: LocalLoss, snapshot: Snapshot) -> list[tuple[Tensor, ...]]:
    """The head of every block, from the seed."""
    return [tuple(head) for head in estimator.own_heads(snapshot, estimator.optimiser is not None)]


def predicted(head: tuple[Tensor, ...], block: Tensor, per_place: bool) -> Tensor:
    """What a head says of a block, (example, unit), (example, unit, *place), or (example, place, unit) tokens."""
    n_axes = block.ndim - 2
    if head[0].ndim > 2 and n_axes:
        convolution = (nn.functional.conv1d, nn.functional.conv2d)[n_axes - 1]
        for weight, bias in zip(head[:-2:2], head[1:-2:2], strict=True):
            block = torch.relu(convolution(block, weight, bias, stride=2, padding=1))
        return nn.functional.linear(block.flatten(2).mean(2), *head[-2:])
    if n_axes:
        rows = block if per_place else block.flatten(2).transpose(1, 2)
        deviation = rows - rows.mean(-1, keepdim=True)
        rows = deviation / (deviation.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        block = rows if per_place else rows.mean(1)
    for weight, bias in zip(head[:-2:2], head[1:-2:2], strict=True):
        block = torch.relu(nn.functional.linear(block, weight, bias))
    return nn.functional.linear(block, *head[-2:])


def head_gradient(case: Written, index: int, head: tuple[Tensor, ...], *, at_tap: bool) -> Tensor:
    """∂ℓ_head by the outputs of the tap, or by what arrives at the next one, in their shapes."""
    block, name = case.arriving[index], case.snapshot.layers
    tokens = "token" in name
    loss = case.snapshot.loss_fn(predicted(head, block, tokens), case.snapshot.targets)
    wanted = case.outputs[index] if at_tap else block
    return torch.autograd.grad(loss, wanted, retain_graph=True)[0]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_guess_is_the_projection_on_the_heads_gradient_pulled_back(name: str, kind: Kind) -> None:
    case = written(name)
    snapshot = case.snapshot
    estimator = small(kind)
    found = guesses(estimator, snapshot)
    for index, head in enumerate(heads_of(estimator, snapshot)):
        tap = snapshot.taps[index]
        v = tap.layout.rows(head_gradient(case, index, head, at_tap=True))
        target = snapshot.gradients[index]
        # A positional embedding's rows serve all examples, and are projected together.
        whose = torch.zeros(len(v)) if tap.owners is None else tap.owners.examples
        expected = torch.zeros_like(v)
        for example in whose.unique():
            rows = torch.where(whose == example)[0]
            square = v[rows].square().sum()  # Zero where the units of a head are dead.
            expected[rows] = (target[rows] * v[rows]).sum() / square.where(square > 0, 1.0) * v[rows]
        torch.testing.assert_close(found[index][0], expected, rtol=1e-8, atol=1e-13)
    torch.testing.assert_close(found[-1][0], snapshot.gradients[-1], rtol=0, atol=0)


@pytest.mark.parametrize("space", ["activation", "weight"])
@pytest.mark.parametrize("name", WRITTEN)
def test_with_its_own_gradient_for_a_target_a_head_guesses_that_gradient(name: str, space: Any) -> None:
    case = written(name)
    estimator = LocalLoss(target="local", space=space)
    found = guesses(estimator, case.snapshot)
    for index, head in enumerate(heads_of(estimator, case.snapshot)):
        expected = case.snapshot.taps[index].layout.rows(head_gradient(case, index, head, at_tap=True))
        torch.testing.assert_close(found[index][0], expected, rtol=1e-8, atol=1e-13)


def test_where_the_heads_gradient_is_the_networks_the_guess_is_the_gradient() -> None:
    """The last layer as the head of the last hidden tap; a head that is another one is another guess."""
    snapshot = skipping()
    read: Any = snapshot.network.get_submodule("read")
    initial = LocalLoss(mode="trained").initialised(snapshot)
    assert initial.optimiser is not None
    values = (*initial.optimiser.values[:2], read.weight.detach(), read.bias.detach())
    own = LocalLoss(mode="trained", optimiser=AdamState.at(values))
    torch.testing.assert_close(guesses(own, snapshot)[1][0], snapshot.gradients[1], rtol=1e-9, atol=1e-14)
    assert not torch.allclose(guesses(initial, snapshot)[1][0], snapshot.gradients[1], rtol=1e-3)


@pytest.mark.parametrize("mode", ["frozen", "redrawn"])
@pytest.mark.parametrize("space", ["activation", "weight"])
@pytest.mark.parametrize("name", ["conv", "gpt", "gpt_tied", "resnet", "lstm", "vit", "windows_first", "called_twice"])
def test_of_all_multiples_the_guess_is_the_nearest(name: str, space: Any, mode: Any) -> None:
    case = ZOO[name]()
    snapshot = fga.capture(case.network, case.loss_fn, case.inputs, case.targets)
    block = LocalLoss(space=space, mode=mode)(snapshot, 3, torch.Generator().manual_seed(0))
    inner, squares = block.inner_products(snapshot)
    row = ["activation", "weight"].index(space)
    tapped = [index for index, layer in enumerate(snapshot.weights) if layer.taps]
    # The head of a language model is a layer with its embedding if they are tied, and its guess is exact.
    mixed = [i for i in tapped if len({snapshot.taps[t].following is None for t in snapshot.weights[i].taps}) > 1]
    kept = [index for index in tapped if index not in mixed or space == "activation"]
    torch.testing.assert_close(inner[row][kept], squares[row][kept], rtol=1e-8, atol=1e-14)
    assert bool(inner.isfinite()[:, tapped].all())


class Residual(nn.Module):
    """A convolutional block around which its input is carried."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Conv2d(units, units, 3, padding=1),
            nn.GroupNorm(1, units),
            nn.Conv2d(units, units, 1),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(inputs + self.second(torch.tanh(self.norm(self.first(inputs)))))


class Blocks(nn.Module):
    """A stem, two residual blocks and a linear layer on the mean over places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 1)
        self.blocks = nn.Sequential(Residual(3), Residual(3))
        self.read = nn.Linear(3, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(self.blocks(self.stem(inputs)).mean((2, 3)))


@cache
def residual() -> Snapshot:
    return captured(build(Blocks), normal(4, 1, 4, 4))


NAMES = ("blocks.0", "blocks.1")


@pytest.mark.parametrize("kind", ["linear", "mlp", "cnn"])
@pytest.mark.parametrize("target", ["global", "local"])
def test_a_named_blocks_guess_is_projected_at_its_output_and_pulled_back_through_it(kind: Kind, target: Any) -> None:
    snapshot = residual()
    estimator = small(kind, blocks=NAMES, target=target)
    if target == "local":
        estimator = train_heads(estimator, snapshot, 3)
    frozen = heads_of(small(kind, blocks=NAMES), snapshot)
    local = heads_of(estimator, snapshot)
    net: Any = snapshot.network
    outputs: dict[str, Tensor] = {}
    stem = net.stem(snapshot.inputs)
    block, at_block = stem, []
    for index, inner in enumerate(net.blocks):
        first = inner.first(block)
        norm = inner.norm(first)
        second = inner.second(torch.tanh(norm))
        block = torch.relu(block + second)
        at_block.append(block)
        outputs |= {f"blocks.{index}.first": first, f"blocks.{index}.norm": norm, f"blocks.{index}.second": second}
    outputs["stem"] = stem
    loss = snapshot.loss_fn(net.read(block.mean((2, 3))), snapshot.targets)
    exact = torch.autograd.grad(loss, at_block, retain_graph=True)
    found = dict(zip([tap.name for tap in snapshot.taps], guesses(estimator, snapshot), strict=True))
    layouts = {tap.name: tap.layout for tap in snapshot.taps}
    for index, (output, gradient) in enumerate(zip(at_block, exact, strict=True)):
        at_output = [
            torch.autograd.grad(
                snapshot.loss_fn(predicted(heads[index], output, False), snapshot.targets), output, retain_graph=True
            )[0]
            for heads in (frozen, local)
        ]
        v, aim = at_output[0], gradient if target == "global" else at_output[1]
        scale = (aim * v).flatten(1).sum(1) / v.flatten(1).square().sum(1)
        names = [name for name in outputs if name.startswith(f"blocks.{index}.") or (name == "stem" and index == 0)]
        pulled = torch.autograd.grad(
            output, [outputs[name] for name in names], scale.view(-1, 1, 1, 1) * v, retain_graph=True
        )
        for name, expected in zip(names, pulled, strict=True):
            torch.testing.assert_close(found[name][0], layouts[name].rows(expected), rtol=1e-8, atol=1e-13)
    torch.testing.assert_close(found["read"][0], snapshot.gradients[-1], rtol=1e-12, atol=1e-15)


def test_in_weight_space_a_block_has_one_scale_and_it_is_the_best() -> None:
    snapshot = residual()
    block = LocalLoss(space="weight", blocks=NAMES)(snapshot, 1, torch.Generator())
    inner, squares = (part[1, :, 0] for part in block.inner_products(snapshot))
    for layers in ([0, 1, 2, 3], [4, 5, 6]):
        torch.testing.assert_close(inner[layers].sum(), squares[layers].sum(), rtol=1e-9, atol=1e-14)
    assert not torch.allclose(inner, squares, rtol=1e-2)


def test_a_tap_as_a_block_has_the_head_at_its_output() -> None:
    snapshot = residual()
    found = guesses(LocalLoss(blocks=["stem"], target="local"), snapshot)  # type: ignore[arg-type]
    stem: Any = snapshot.network.get_submodule("stem")
    output = stem(snapshot.inputs)
    (head,) = heads_of(LocalLoss(blocks=("stem",)), snapshot)
    loss = snapshot.loss_fn(predicted(head, output, False), snapshot.targets)
    expected = snapshot.taps[0].layout.rows(torch.autograd.grad(loss, output)[0])
    torch.testing.assert_close(found[0][0], expected, rtol=1e-8, atol=1e-13)
    for guess, exact in zip(found[1:], snapshot.gradients[1:], strict=True):
        torch.testing.assert_close(guess[0], exact, rtol=1e-12, atol=1e-15)


class Logits(nn.Module):
    """Another network's logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs).logits
        return logits


class ClassesFirst(nn.Module):
    """A sequence whose outputs are (example, class, position), as `cross_entropy` takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.read = nn.Conv1d(2, 4, 3, padding=1), nn.Conv1d(4, 3, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(torch.tanh(self.first(inputs)))


class Flat(nn.Module):
    """Tokens whose outputs are (example·position, class)."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.norm, self.read = nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.norm(self.token(tokens))).flatten(0, 1)


@pytest.mark.parametrize(
    ("make", "inputs", "targets", "loss_fn", "outputs"),
    [
        (ClassesFirst, normal(4, 2, 5), torch.arange(20).view(4, 5) % 3, nn.functional.cross_entropy, 3),
        (Flat, torch.arange(6).view(3, 2) % 5, torch.arange(6) % 4, nn.functional.cross_entropy, 4),
    ],
)
def test_outputs_at_every_position_are_predicted_at_every_position(
    make: Callable[[], nn.Module], inputs: Tensor, targets: Tensor, loss_fn: Any, outputs: int
) -> None:
    snapshot = fga.capture(build(make), loss_fn, inputs, targets)
    estimator = LocalLoss(mode="trained", rate=0.05).initialised(snapshot)
    assert all(len(head[0]) == outputs for head in heads_of(estimator, snapshot))
    trained = train_heads(estimator, snapshot, 30)
    assert bool((trained.head_losses(snapshot) < estimator.head_losses(snapshot)).all())


@pytest.mark.parametrize("mode", ["frozen", "redrawn"])
def test_a_head_predicts_the_tensor_of_an_output_object_that_the_loss_reads(mode: Any) -> None:
    case = ZOO["output_object"]()
    given = fga.capture(case.network, case.loss_fn, case.inputs, case.targets)
    plain = fga.capture(Logits(case.network), nn.functional.cross_entropy, case.inputs, case.targets)
    for one, other in zip(guesses(LocalLoss(mode=mode), given), guesses(LocalLoss(mode=mode), plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


# Sampling, training, refusals


@pytest.mark.parametrize(
    "estimator", [LocalLoss(), LocalLoss("mlp", width=6, mode="redrawn", space="weight")], ids=label
)
@pytest.mark.parametrize("name", ["conv", "gpt", "resnet", "attention"])
def test_they_are_sampled_and_train(name: str, estimator: LocalLoss) -> None:
    case = ZOO[name]()
    snapshot = fga.capture(case.network, case.loss_fn, case.inputs, case.targets)
    measured = fga.sample(snapshot, estimator, n_guesses=8, block_size=4)
    assert bool(measured["cosine"].sel(space="weight", layer="all").notnull())
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        fga.estimate_gradient(case.network, case.loss_fn, case.inputs, case.targets, estimator, generator)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in case.network.parameters())


def test_trained_heads_of_blocks_train_a_network() -> None:
    images = normal(24, 1, 4, 4).float()
    targets = (images.mean((1, 2, 3)) > 0).long()
    data = fga.datasets.Dataset(images, targets, images, targets)
    run = fga.train(
        build(Blocks).float(), data, LocalLoss(mode="trained", blocks=NAMES, rate=0.01), epochs=4, batch_size=12
    )
    assert bool(torch.tensor(run.log["loss"].values).isfinite().all())


def test_what_has_no_local_loss_is_refused_in_one_sentence() -> None:
    snapshot = residual()
    for names, message in [
        (("blocks.7",), "blocks: the network has no module 'blocks.7'"),
        (("blocks", "blocks.1"), "blocks: 'blocks' is not called, or contains another block"),
        (("blocks.1", "blocks.1.second"), "blocks: 'blocks.1' is not called, or contains another block"),
    ]:
        with pytest.raises(ValueError, match=message):
            guesses(LocalLoss(blocks=names), snapshot)
    with pytest.raises(ValueError, match=r"blocks must be a list of names, at least one, got 'blocks.0'"):
        LocalLoss(blocks="blocks.0")  # type: ignore[arg-type]
    tokens = torch.tensor([[0, 3], [2, 2], [4, 1]])
    language = ZOO["gpt"]()
    spoken = fga.capture(language.network, token_loss, tokens, tokens)
    with pytest.raises(ValueError, match="a cnn head has no form for a prediction at each place, as behind 'tokens'"):
        guesses(LocalLoss("cnn"), spoken)
    case = ZOO["tuple_targets"]()
    with pytest.raises(ValueError, match=r"predicts one tensor .* and the loss reads 2 of what it returns"):
        guesses(LocalLoss(), fga.capture(case.network, case.loss_fn, case.inputs, case.targets))
    interacting = captured(
        build(lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))).train(), normal(5, 3)
    )
    for estimator in (LocalLoss(), LocalLoss(blocks=("1",))):
        with pytest.raises(
            ValueError, match=r"'1' is BatchNorm in training mode .* there is a local loss for no example"
        ):
            guesses(estimator, interacting)
