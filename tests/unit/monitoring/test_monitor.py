"""The rows of a monitor: the numbers of `fganalysis.sample`, what `.grad` is, reasons, schedules and state."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fganalysis as fga
from fganalysis.capturing.batch import called
from fganalysis.monitoring.noise_scale import Noise, some_examples
from fganalysis.monitoring.rows import KEPT_QUANTITIES, OF_LAYER
from fganalysis.results import schema, store
from tests.networks.zoo import ZOO
from tests.unit.monitoring.watched import batch, noisy_network, plain_network, trained

TIMES = ["measuring_seconds", "training_seconds"]


def backward(network: nn.Module, inputs: Any, targets: Any) -> None:
    network.zero_grad()
    cross_entropy(network(inputs), targets).backward()


def test_its_numbers_are_those_of_a_captured_copy_in_evaluation_mode() -> None:
    network = noisy_network()
    monitor = fga.Monitor(network, cross_entropy, ["weight", "upstream"], every=1, guesses=64, seed=3, layers=True)
    trained(network, 1, lambda *_: None)
    inputs, targets = batch(5)
    monitor.step(*batch(4))
    monitor.step(inputs, targets)
    dataset = monitor.dataset.sel(step=1)
    snapshot = fga.capture(copy.deepcopy(network).eval(), cross_entropy, inputs, targets, step=1)
    assert float(dataset["loss"]) == pytest.approx(float(snapshot.loss))
    assert list(dataset.layer.values) == ["all", *snapshot.layers]
    for key, by_law in (("weight", True), ("upstream", False)):
        measured = fga.sample(snapshot, key, 64, seed=3, by_law=by_law)
        predicted = fga.predict(snapshot, key)
        there = dataset.sel(estimator=key)
        for name in KEPT_QUANTITIES:
            for part in ("", *schema.BESIDE):
                expected = measured[name + part].sel(layer=there.layer)
                np.testing.assert_allclose(there[name + part], expected, rtol=1e-5, atol=1e-7, err_msg=name + part)
            expected = predicted[name].sel(layer=there.layer)
            np.testing.assert_allclose(there[name + schema.PREDICTED], expected, rtol=1e-5, atol=1e-7)
    assert json.loads(monitor.dataset.attrs["by_law"]) == ["weight"]
    schema.validate(monitor.dataset)


def test_guesses_on_a_part_of_the_batch_are_those_on_its_first_examples() -> None:
    network, (inputs, targets) = noisy_network(), batch(5)
    whole = fga.Monitor(network, cross_entropy, ["weight", "activity"], guesses=32, examples=99)
    part = fga.Monitor(network, cross_entropy, ["weight", "activity"], guesses=32, examples=4)
    backward(network, inputs, targets)
    for monitor in (whole, part):
        monitor.step(inputs, targets)
    of_whole, of_part = whole.dataset.isel(step=0), part.dataset.isel(step=0)
    assert (of_whole["n_examples_of_guesses"], of_part["n_examples_of_guesses"]) == (len(inputs), 4)
    assert of_part["n_examples"] == len(inputs) and part.dataset.attrs["examples"] == 4
    for name in ("loss", *OF_LAYER):  # of the whole batch
        np.testing.assert_array_equal(of_part[name], of_whole[name])
    snapshot = fga.capture(copy.deepcopy(network).eval(), cross_entropy, inputs[:4], targets[:4])
    measured, predicted = fga.sample(snapshot, "activity", 32), fga.predict(snapshot, "activity")
    there = of_part.sel(estimator="activity", layer="all")
    for name in KEPT_QUANTITIES:
        np.testing.assert_allclose(there[name], measured[name].sel(layer="all"), rtol=1e-5, atol=1e-7)
        expected = predicted[name].sel(layer="all")
        np.testing.assert_allclose(there[name + schema.PREDICTED], expected, rtol=1e-5, atol=1e-7)


def test_a_network_that_takes_whole_batches_alone_has_no_guesses_on_a_part() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = plain_network()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.inner(inputs).view(len(batch(0)[0]), -1)  # type: ignore[no-any-return]

    monitor = fga.Monitor(Fixed(), cross_entropy, "weight", guesses=32, examples=5)
    with pytest.warns(RuntimeWarning, match="measured nothing of weight at step 0 and goes on: on a part of the batch"):
        monitor.step(*batch(0))
    assert np.isfinite(monitor.dataset["loss"]).all() and monitor.dataset["n_examples_of_guesses"].isnull().all()


def test_a_strangers_gradient_is_compared_as_it_is() -> None:
    network, (inputs, targets) = plain_network(), batch(0)
    monitor = fga.Monitor(network, cross_entropy, every=1, layers=True)
    backward(network, inputs, targets)
    exact = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}  # type: ignore[union-attr]
    monitor.step(inputs, targets)
    for name, parameter in network.named_parameters():  # twice the gradient in one layer, turned in the other
        parameter.grad = 2 * exact[name] if name.startswith("0") else -exact[name]
    monitor.step(inputs, targets)
    network.zero_grad()
    monitor.step(inputs, targets)
    backward(network, inputs, targets)
    monitor.step(inputs, targets, compare=False)
    dataset = monitor.dataset
    squares = [sum(float(g.square().sum()) for n, g in exact.items() if n.startswith(layer)) for layer in "02"]
    np.testing.assert_allclose(dataset["grad_cosine"][0], 1, rtol=1e-6)
    np.testing.assert_allclose(dataset["grad_relative_error"][0], 0, atol=1e-6)
    np.testing.assert_allclose(dataset["grad_relative_error"][1, 1:], [1, 2], rtol=1e-5)
    np.testing.assert_allclose(dataset["grad_cosine"][1, 1:], [1, -1], rtol=1e-5)
    of_all = (2 * squares[0] - squares[1]) / np.sqrt((4 * squares[0] + squares[1]) * sum(squares))
    assert float(dataset["grad_cosine"][1, 0]) == pytest.approx(of_all, rel=1e-5)
    assert dataset["grad_cosine"][2:].isnull().all()
    reason = json.loads(dataset.attrs["not_measured"])[".grad"]
    assert "no parameter has a .grad" in reason and "(step 2)" in reason and "not to be compared (step 3)" in reason


@pytest.mark.parametrize("unscaled", [False, True])
def test_scaled_gradients_are_unscaled_with_the_scaler(unscaled: bool) -> None:
    network, (inputs, targets) = plain_network(), batch(0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    monitor = fga.Monitor(network, cross_entropy, every=1, scaler=scaler)
    scaler.scale(cross_entropy(network(inputs), targets)).backward()
    if unscaled:
        scaler.unscale_(optimizer)
    monitor.step(inputs, targets)
    scaler.step(optimizer)
    scaler.update()
    assert float(monitor.dataset["grad_relative_error"][0, 0]) < 1e-5


def test_scaled_gradients_without_the_scaler_are_refused_in_a_sentence() -> None:
    network, (inputs, targets) = plain_network(), batch(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    monitor = fga.Monitor(network, cross_entropy, every=1)
    scaler.scale(cross_entropy(network(inputs), targets)).backward()
    monitor.step(inputs, targets)
    dataset = monitor.dataset
    assert np.isnan(dataset["grad_relative_error"][0, 0]) and float(dataset["grad_cosine"][0, 0]) > 0.999
    assert "6.554e+04 times as long as the gradient" in dataset.attrs["not_measured"]
    assert "give scaler=" in dataset.attrs["not_measured"]


def test_an_optimiser_takes_steps_of_the_monitor_until_it_is_removed() -> None:
    network = plain_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    monitor = fga.Monitor(network, cross_entropy, every=2)
    asked = []

    def present() -> tuple[Tensor, Tensor]:
        asked.append(step)
        return inputs, targets

    handle = monitor.attach(optimizer, present)
    for step in range(5):
        inputs, targets = batch(step)
        backward(network, inputs, targets)
        optimizer.step()
    handle.remove()
    optimizer.step()
    assert asked == [0, 2, 4]  # only where a measurement is due
    assert list(monitor.dataset.step.values) == asked
    np.testing.assert_allclose(monitor.dataset["grad_cosine"], 1, rtol=1e-6)
    handle = monitor.attach(optimizer, batch(9))
    optimizer.step()
    handle.remove()
    monitor.attach(optimizer, lambda: torch.zeros(3))  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"batch must be \(inputs, targets\)"):
        optimizer.step()


def test_schedules() -> None:
    def steps(**when: Any) -> list[int]:
        monitor = fga.Monitor(plain_network(), cross_entropy, **when)
        measured = [step for step in range(7) if monitor.step(*batch(step))]
        assert measured == list(monitor.dataset.step.values)
        return measured

    assert steps() == [0]
    assert steps(every=3) == [0, 3, 6]
    assert steps(schedule=[1, 4]) == [1, 4]
    assert steps(schedule=lambda step: step in (0, 5)) == [0, 5]


def test_what_is_refused_becomes_a_row_with_its_reason_and_one_warning() -> None:
    network = plain_network()
    broken = {"on": True}

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        penalty = network[0].weight.square().sum() if broken["on"] else 0.0
        return cross_entropy(outputs, targets) + penalty

    monitor = fga.Monitor(network, loss_fn, "activity", every=1, guesses=32)
    with pytest.warns(RuntimeWarning, match="loss_fn reads parameter") as caught:
        monitor.step(*batch(0))
        monitor.step(*batch(1))
        monitor.step(torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64))
        broken["on"] = False
        monitor.step(*batch(2))
    assert len(caught) == 1
    dataset = monitor.dataset
    assert list(dataset["loss"].isnull().values) == [True, True, True, False]
    assert dataset["cosine"][:3].isnull().all() and not dataset["cosine"][3].isnull().any()
    reasons = json.loads(dataset.attrs["not_measured"])["batch"]
    assert "(steps 0, 1)" in reasons and "forward pass fails on inputs of shape (4, 5)" in reasons


@pytest.mark.parametrize("unit", [1e-100, 1e100])
def test_gradients_of_any_unit_are_compared(unit: float) -> None:
    network, (inputs, targets) = plain_network().double(), batch(0)
    monitor = fga.Monitor(network, lambda outputs, targets: unit * cross_entropy(outputs, targets), every=1)
    (unit * cross_entropy(network(inputs.double()), targets)).backward()
    monitor.step(inputs.double(), targets)
    np.testing.assert_allclose(monitor.dataset["grad_cosine"], 1)


@pytest.mark.parametrize(("guesses", "known"), [(32, False), (48, False), (49, True)])
def test_too_few_guesses_for_bias_and_variance_are_a_reason(guesses: int, known: bool) -> None:
    monitor = fga.Monitor(plain_network(), cross_entropy, "activity", every=1, guesses=guesses)
    monitor.step(*batch(0))
    dataset = monitor.dataset
    assert bool(dataset["variance"].notnull().any()) == known and bool(dataset["cosine"].notnull().any())
    reasons = json.loads(dataset.attrs.get(schema.NOT_MEASURED, "{}"))
    assert ("activity, bias and variance" in reasons) == (not known)


def test_gradients_of_zero_have_a_reason() -> None:
    """As after a step so large that the loss is flat."""
    network, (inputs, targets) = plain_network(), batch(0)
    monitor = fga.Monitor(network, lambda outputs, _: outputs.square().mean(), "weight", every=1, guesses=32)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    monitor.step(inputs, targets)
    with torch.no_grad():
        for parameter in network[2].parameters():
            parameter.zero_()
    with pytest.warns(RuntimeWarning, match="the gradient is zero at every tap"):
        monitor.step(inputs, targets)
    dataset = monitor.dataset
    assert list(dataset["grad_cosine"].isnull().values[:, 0]) == [True, True]
    assert list(dataset["loss"].values > 0) == [True, False] and not dataset["loss"].isnull().any()
    assert float(dataset["grad_relative_error"][0, 0]) == 1
    reasons = json.loads(dataset.attrs["not_measured"])
    assert reasons[".grad"] == ".grad is zero, which has no direction (step 0)"
    assert "(step 1)" in reasons["batch"]


def test_an_estimator_that_fails_leaves_the_others() -> None:
    def failing(network: Any, loss_fn: Any, inputs: Any, targets: Any, generator: Any) -> Any:
        raise RuntimeError("of mine")

    estimators = [fga.estimators.from_function(failing), "weight"]
    monitor = fga.Monitor(plain_network(), cross_entropy, estimators, every=1, guesses=32)
    with pytest.warns(RuntimeWarning, match="measured nothing of failing at step 0"):
        monitor.step(*batch(0))
    dataset = monitor.dataset.sel(space="weight", layer="all")
    assert np.isnan(dataset["cosine"].sel(estimator="failing"))
    assert not np.isnan(dataset["cosine"].sel(estimator="weight"))
    assert "of mine" in json.loads(dataset.attrs["not_measured"])["failing"]


def test_it_goes_on_from_its_state_with_the_same_rows(tmp_path: Path) -> None:
    def monitor_of(network: nn.Module) -> fga.Monitor:
        return fga.Monitor(network, cross_entropy, ["weight", "activity"], every=2, guesses=32, layers=True)

    whole, broken = noisy_network(), noisy_network()
    torch.manual_seed(1)
    uninterrupted = monitor_of(whole)
    trained(whole, 3, uninterrupted.step)
    trained(whole, 4, uninterrupted.step, first=3)
    torch.manual_seed(1)
    first = monitor_of(broken)
    trained(broken, 3, first.step)
    state = json.loads(json.dumps(first.state_dict(), allow_nan=False))
    torch.save(state, tmp_path / "state.pt")
    second = monitor_of(broken)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.dataset.identical(first.dataset)
    trained(broken, 4, second.step, first=3)
    rows = [monitor.dataset.drop_vars(TIMES).drop_attrs() for monitor in (uninterrupted, second)]
    assert list(rows[0].step.values) == [0, 2, 4, 6]
    assert rows[0].identical(rows[1])
    store.write(second.dataset, tmp_path / "monitor.nc")
    assert fga.open_results(tmp_path / "monitor.nc") is not None
    for wrong in ({}, {"format": 1}, {**state, "rows": [{}]}, None):
        with pytest.raises(ValueError, match="state"):
            second.load_state_dict(wrong)  # type: ignore[arg-type]


def test_a_damaged_state_is_refused_and_changes_nothing() -> None:
    monitor = fga.Monitor(plain_network(), cross_entropy, every=1)
    monitor.step(*batch(0))
    state = json.loads(json.dumps(monitor.state_dict()))
    row = state["rows"][0]
    wrong = [
        {"step": "x"},
        {"facts": "abc"},
        {"budget": {"training": "x", "spent": 0, "fixed": None, "each": 0}},
        {"budget": {"training": 1, "spent": 1, "fixed": None}},
        {"rows": [row | {"of_layer": {"another": [1.0]}}]},
        {"rows": [row | {"of_layer": {"grad_cosine": [1.0, 2.0]}}]},
    ]
    for part in wrong:
        with pytest.raises(ValueError, match="lacks a part or has a wrong one"):
            monitor.load_state_dict(state | part)
    assert monitor.state_dict() == state


def test_the_latest_numbers_for_any_logger() -> None:
    monitor = fga.Monitor(plain_network(), cross_entropy, "activity", every=1, guesses=32, layers=True)
    assert monitor.latest() == {}
    monitor.step(*batch(0))
    latest = monitor.latest()
    assert all(type(value) is float and np.isfinite(value) for value in latest.values())
    dataset = monitor.dataset.isel(step=0, estimator=0)
    assert latest["activity/weight/cosine"] == float(dataset["cosine"].sel(space="weight", layer="all"))
    assert latest["activity/weight/cosine/0"] == float(dataset["cosine"].sel(space="weight", layer="0"))
    assert "grad_cosine" not in latest and latest["step"] == 0.0 and "gradient_noise_scale" in latest


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"network": 1}, "network must be a torch.nn.Module"),
        ({"network": nn.DataParallel(nn.Linear(1, 1))}, "network.module"),
        ({"loss_fn": "x"}, "loss_fn must be"),
        ({"estimators": "nothing"}, "nothing"),
        ({"estimators": ["weight", "weight"]}, "estimators must be different"),
        ({"every": 0}, "every must be"),
        ({"every": 1, "schedule": [1]}, "give one of them"),
        ({"schedule": 5}, "schedule must be"),
        ({"schedule": [-1]}, "a step of schedule"),
        ({"guesses": 1}, "guesses must be"),
        ({"at_most": 0}, "at_most must be"),
        ({"layers": "no"}, "layers must be"),
        ({"predictions": 1}, "predictions must be"),
        ({"examples": 0}, "examples must be"),
        ({"scaler": 2.0}, "scaler must be"),
        ({"seed": -1}, "seed must be"),
        ({"clock": 1.0}, "clock must be"),
    ],
)
def test_wrong_arguments(wrong: dict[str, Any], message: str) -> None:
    given = {"network": plain_network(), "loss_fn": cross_entropy, **wrong}
    with pytest.raises(ValueError, match=message):
        fga.Monitor(**given)


def test_wrong_batches_and_optimisers() -> None:
    monitor = fga.Monitor(plain_network(), cross_entropy, schedule=[])
    for inputs, targets, message in (([1], batch(0)[1], "inputs must be"), (batch(0)[0], 3, "targets must be")):
        with pytest.raises(ValueError, match=message):
            monitor.step(inputs, targets)
    with pytest.raises(ValueError, match="scaler must be"):
        monitor.step(*batch(0), scaler=2.0)
    with pytest.raises(ValueError, match="compare must be"):
        monitor.step(*batch(0), compare="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="optimizer must be"):
        monitor.attach(plain_network(), batch(0))  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(plain_network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="batch must be"):
        monitor.attach(optimizer, torch.zeros(3))  # type: ignore[arg-type]
    assert monitor.dataset.sizes["step"] == 0


def test_half_precision_and_autocast() -> None:
    network, (inputs, targets) = plain_network(), batch(0)
    monitor = fga.Monitor(network, cross_entropy, "weight", every=1, guesses=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        backward(network, inputs, targets)
        monitor.step(inputs, targets)
    assert 0.99 < float(monitor.dataset["grad_cosine"][0, 0]) < 1 - 1e-7
    halved = fga.Monitor(plain_network().bfloat16(), cross_entropy, "weight", every=1)
    with pytest.warns(RuntimeWarning, match="only float32 and float64 are measured"):
        halved.step(inputs.bfloat16(), targets)


def test_the_noise_scale_is_made_of_unbiased_estimates() -> None:
    """All samples of four examples out of three, each gradient as likely: means are tr Σ and ‖G‖² exactly."""
    gradients = np.array([[1.0, 0.0, 2.0], [0.0, -1.0, 1.0], [-2.0, 0.0, -1.0]])
    chosen = np.stack(np.meshgrid(*[range(3)] * 4), -1).reshape(-1, 4)
    samples = gradients[chosen]  # (sample, part, weight)
    squares, sums = (samples**2).sum(-1), samples.sum(1)
    noise = Noise.of(squares, (sums**2).sum(-1), 1)
    variance, squared_mean = noise.example_variance, noise.squared_mean
    mean = gradients.mean(0)
    assert squared_mean.mean() == pytest.approx(mean @ mean, abs=1e-12)
    assert variance.mean() == pytest.approx(((gradients - mean) ** 2).sum(-1).mean(), abs=1e-12)
    biased = (sums**2).sum(-1) / 16  # the squared norm of the mean is no estimate of it
    assert biased.mean() > mean @ mean + 0.1
    known = squared_mean > 0
    np.testing.assert_allclose(noise.scale[known], variance[known] / squared_mean[known], rtol=1e-12)
    assert np.isnan(noise.scale[~known]).all() and not known.all()


def test_the_noise_scale_over_many_rows_has_an_interval() -> None:
    network = plain_network()
    monitor = fga.Monitor(network, cross_entropy, every=1, layers=True)
    for step in range(40):
        inputs, _ = batch(step, 8)
        monitor.step(inputs, inputs[:, :3].argmax(1))
    dataset = monitor.dataset
    pooled = fga.monitoring.pooled_noise_scale(dataset)
    inputs, _ = batch(1000, 4096)
    gradients = torch.func.vmap(torch.func.grad(example_loss(network)), (None, 0, 0))(
        {name: weight.detach() for name, weight in network.named_parameters()}, inputs, inputs[:, :3].argmax(1)
    )
    examples = torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1).detach().double()
    truth = float(examples.var(0).sum() / examples.mean(0).square().sum())
    assert pooled.low[0] < truth < pooled.high[0] < 3 * pooled.value[0]
    assert len(pooled.value) == 3
    assert np.isnan(fga.monitoring.pooled_noise_scale(dataset.isel(step=slice(8))).low).all()
    for wrong, message in (
        (1, "dataset must be"),
        (dataset[["loss"]], "dataset must be"),
        (dataset.isel(step=[]), "no row"),
    ):
        with pytest.raises(ValueError, match=message):
            fga.monitoring.pooled_noise_scale(wrong)  # type: ignore[arg-type]


def example_loss(network: nn.Module) -> Any:
    def loss(weights: dict[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(network, weights, inputs[None]), target[None])

    return loss


@pytest.mark.parametrize(("examples", "sizes"), [(6, [1] * 6), (16, [2] * 8), (35, [4] * 8 + [3])])
def test_the_noise_scale_of_a_network_is_that_of_its_parts(examples: int, sizes: list[int]) -> None:
    network, (inputs, targets) = plain_network().double(), batch(3, examples)
    inputs = inputs.double()

    def gradient(part: slice) -> Tensor:
        loss = cross_entropy(network(inputs[part]), targets[part])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])

    ends = np.cumsum(sizes)
    size = sizes[0]
    parts = torch.stack([gradient(slice(end - n, end)) for n, end in zip(sizes, ends, strict=True) if n == size])
    n = len(parts)
    squared_mean = (parts.sum(0).square().sum() - parts.square().sum()) / (n * (n - 1))
    expected = size * (parts.square().sum(1).mean() - squared_mean) / squared_mean
    monitor = fga.Monitor(network, cross_entropy, every=1)
    monitor.step(inputs, targets)
    assert float(monitor.dataset["gradient_noise_scale"][0, 0]) == pytest.approx(float(expected), rel=1e-8)


def test_the_noise_scale_needs_a_mean_over_examples() -> None:
    def summed(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets, reduction="sum")

    inputs, targets = batch(0)
    for loss_fn, (x, y), message in (
        (summed, (inputs, targets), "do not add up"),
        (cross_entropy, (inputs[:1], targets[:1]), "at least 2 examples"),
    ):
        monitor = fga.Monitor(plain_network(), loss_fn, every=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no warning: the other numbers are there
            monitor.step(x, y)
        assert message in json.loads(monitor.dataset.attrs["not_measured"])["gradient_noise_scale"]
        assert np.isnan(monitor.dataset["gradient_noise_scale"]).all()


def test_parts_of_a_batch_of_any_form() -> None:
    tokens, labels, mask = torch.arange(12).view(4, 3), torch.arange(12), torch.ones(3, 3)
    part = some_examples({"tokens": tokens, "labels": labels, "mask": mask}, 4, 1, 2)
    assert torch.equal(part["tokens"], tokens[1:3]) and torch.equal(part["labels"], labels[3:9])
    assert part["mask"] is mask
    first = torch.zeros(5, 4, 2)  # positions first
    assert some_examples(first, 4, 1, 2).shape == (5, 2, 2)


@pytest.mark.parametrize("name", ZOO)
def test_a_network_of_any_kind(name: str) -> None:
    """Its own gradient is the exact one, and of a batch of three a noise scale or the reason is there."""
    case = ZOO[name]()
    monitor = fga.Monitor(case.network, case.loss_fn, every=1)
    case.loss_fn(called(case.network, case.inputs), case.targets).backward()
    monitor.step(case.inputs, case.targets)
    row = monitor.dataset.isel(step=0, layer=0)
    assert float(row["grad_relative_error"]) < 1e-10
    reason = monitor.dataset.attrs.get("not_measured", "")
    assert np.isfinite(row["example_variance"]) or "add up" in reason or "fails on a part of the batch" in reason


def test_a_network_with_tokens_and_rows_that_serve_all_examples() -> None:
    network = fga.networks.gpt(5, 3, 8, 2, 1)
    tokens = torch.randint(5, (16, 3), generator=torch.Generator().manual_seed(0))

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs.flatten(0, 1), targets.flatten())

    monitor = fga.Monitor(network, loss_fn, "weight", every=1, guesses=32)
    loss_fn(network(tokens), tokens).backward()
    monitor.step(tokens, tokens)
    row = monitor.dataset.isel(step=0)
    assert float(row["grad_relative_error"][0]) < 1e-5
    assert float(row["gradient_noise_scale"][0]) > 0
