"""A monitor in transformers' trainer, in Lightning's (a stub), in TensorBoard's writer (another) and in a dict."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import fganalysis as fga
from tests.unit.monitoring.watched import batch, plain_network


class Writer:
    """What TensorBoard's SummaryWriter has of it."""

    def __init__(self) -> None:
        self.written: dict[str, tuple[float, int]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.written[tag] = value, step


def test_to_tensorboard() -> None:
    monitor, writer = fga.Monitor(plain_network(), cross_entropy, "weight", every=1, guesses=32), Writer()
    fga.monitoring.write_scalars(monitor, writer)
    assert writer.written == {}
    monitor.step(*batch(0))
    monitor.step(*batch(1))
    fga.monitoring.write_scalars(monitor, writer)
    latest = monitor.latest()
    assert writer.written["fganalysis/weight/weight/cosine"] == (latest["weight/weight/cosine"], 1)
    assert len(writer.written) == len(latest) - 1
    with pytest.raises(ValueError, match="writer must have add_scalar"):
        fga.monitoring.write_scalars(monitor, {})
    with pytest.raises(ValueError, match="monitor must be"):
        fga.monitoring.write_scalars(None, writer)  # type: ignore[arg-type]


def loss_fn(outputs: Any, labels: Tensor) -> Tensor:
    return cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def test_in_transformers_trainer(tmp_path: Path) -> None:
    """Through the callback's methods, in the trainer's order: the trainer itself needs a further package."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=6, n_embd=8, n_layer=1, n_head=2, attn_implementation="eager"
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.GPT2LMHeadModel(config).train()  # with dropout
    monitor = fga.Monitor(model, loss_fn, "weight", every=2, guesses=32)
    logged: list[dict[str, float]] = []
    callback = fga.monitoring.transformers_callback(monitor, logged.append)
    assert isinstance(callback, transformers.TrainerCallback)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = SimpleNamespace(gradient_accumulation_steps=1)
    state, control = transformers.TrainerState(stateful_callbacks=[callback]), transformers.TrainerControl()
    callback.on_train_begin(args, state, control, model=model)
    for step in range(3):
        tokens = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        callback.on_pre_optimizer_step(args, state, control)
        optimizer.step()
        state.global_step += 1
        model.eval()
        with torch.no_grad():
            model(input_ids=tokens[:1])  # an evaluation is no batch of the training
        model.train()
    state.stateful_callbacks = [callback]
    state.__post_init__()  # as where the trainer makes it
    state.save_to_json(str(tmp_path / "state.json"))
    callback.on_train_end(args, state, control)
    assert not model._forward_pre_hooks
    dataset = monitor.dataset
    assert list(dataset.step.values) == [0, 2] and [int(row["step"]) for row in logged] == [0, 2]
    assert float(dataset["n_examples"].min()) == 4
    assert 0.5 < float(dataset["grad_cosine"][0, 0]) < 1  # dropout in the one, none in the other
    assert "hooks_left_out" not in dataset.attrs
    resumed = fga.Monitor(model, loss_fn, "weight", every=2, guesses=32)
    other = fga.monitoring.transformers_callback(resumed)
    state = transformers.TrainerState.load_from_json(str(tmp_path / "state.json"))
    other.on_train_begin(args, state, control, model=model)
    other.on_train_end(args, state, control)
    assert resumed.dataset.identical(dataset)


def test_the_scaler_of_transformers_optimiser_is_taken_into_account() -> None:
    """A Trainer in float16, which takes a GPU, makes its scaler after the monitor."""
    transformers = pytest.importorskip("transformers")
    network = plain_network()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
            return self.network(inputs)  # type: ignore[no-any-return]

    model, (inputs, labels) = Model(), batch(0)
    monitor = fga.Monitor(model, cross_entropy, every=1)
    callback = fga.monitoring.transformers_callback(monitor)
    control, state = transformers.TrainerControl(), transformers.TrainerState()
    args = SimpleNamespace(gradient_accumulation_steps=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callback.on_train_begin(args, state, control, model=model)
    for unscaled in (False, True):
        optimizer.zero_grad()
        scaler.scale(cross_entropy(model(inputs=inputs, labels=labels), labels)).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        callback.on_pre_optimizer_step(args, state, control, optimizer=SimpleNamespace(scaler=scaler))
    assert float(monitor.dataset["grad_relative_error"].max()) < 1e-5


class StubCallback:
    """What Lightning's Callback has of it."""


def test_in_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = ModuleType("lightning.pytorch")
    stub.Callback = StubCallback  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", stub)
    network = plain_network()
    monitor = fga.Monitor(network, cross_entropy, every=1)
    logged: list[dict[str, float]] = []
    callback = fga.monitoring.lightning_callback(monitor, log=logged.append)
    assert isinstance(callback, StubCallback)
    trainer = SimpleNamespace(accumulate_grad_batches=1)
    for accumulated in (1, 2):
        trainer.accumulate_grad_batches = accumulated
        data = batch(accumulated)
        callback.on_train_batch_start(trainer, network, data, 0)
        network.zero_grad()
        cross_entropy(network(data[0]), data[1]).backward()
        callback.on_before_optimizer_step(trainer, network, None)
    cosines = monitor.dataset["grad_cosine"].sel(layer="all").values
    assert cosines[0] == pytest.approx(1, rel=1e-6) and cosines[1] != cosines[1]
    assert len(logged) == 2
    other = fga.Monitor(network, cross_entropy, every=1)
    fga.monitoring.lightning_callback(other).load_state_dict(callback.state_dict())
    assert other.dataset.identical(monitor.dataset)


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    monitor = fga.Monitor(plain_network(), cross_entropy)
    with pytest.raises(ValueError, match="lightning or pytorch_lightning is not installed"):
        fga.monitoring.lightning_callback(monitor)
    with pytest.raises(ValueError, match="transformers is not installed"):
        fga.monitoring.transformers_callback(monitor)
    with pytest.raises(ValueError, match="log must be"):
        fga.monitoring.transformers_callback(monitor, log=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="split must be"):
        fga.monitoring.lightning_callback(monitor, split=1)  # type: ignore[arg-type]
