"""The callbacks in the real trainers of transformers and Lightning, and a real writer of TensorBoard.

Lightning and TensorBoard are not among the packages of the tests, as they bring a dozen others each: to run their tests
beside that of transformers, `pip install lightning tensorboard`.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import fganalysis as fga
from fganalysis.monitoring.monitor import Monitor
from tests.unit.monitoring.watched import CLASSES, INPUTS, batch, noisy_network, plain_network

STEPS = 4
ESTIMATORS = ["weight", "activity"]
TOKENS, POSITIONS = 11, 6


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def cosine(dataset: xr.Dataset) -> np.ndarray:
    """Of .grad, (step,)."""
    return dataset["grad_cosine"].sel(layer="all").values


# transformers


def token_loss(outputs: Any, labels: Tensor) -> Tensor:
    return cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def language_model(dropout: float) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=TOKENS,
        n_positions=POSITIONS,
        n_embd=8,
        n_layer=1,
        n_head=2,
        attn_implementation="eager",
        loss_type="ForCausalLM",
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config)


def trained_by_transformers(
    folder: Path, monitor_of: Any = None, dropout: float = 0.1, resume: str | None = None, **settings: Any
) -> tuple[Any, Monitor | None, float]:
    """The model, what watched it, and the mean loss."""
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    transformers = pytest.importorskip("transformers")
    model = language_model(dropout)
    tokens = torch.randint(TOKENS, (32, POSITIONS), generator=torch.Generator().manual_seed(1))
    # The trainer divides by the number of labels, of which the first predicts nothing.
    labels = torch.cat([torch.full((32, 1), -100), tokens[:, 1:]], dim=1)
    monitor = None if monitor_of is None else monitor_of(model)
    defaults: dict[str, Any] = {"max_steps": STEPS, "save_strategy": "no"}
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=4,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **(defaults | settings),
        ),
        train_dataset=[{"input_ids": row, "labels": given} for row, given in zip(tokens, labels, strict=True)],
        callbacks=[] if monitor is None else [fga.monitoring.transformers_callback(monitor)],
    )
    with torch.random.fork_rng(devices=[]):
        loss = trainer.train(resume_from_checkpoint=resume).training_loss
    return model, monitor, loss


def of_tokens(model: nn.Module) -> Monitor:
    return fga.Monitor(model, token_loss, ESTIMATORS, every=2, guesses=32)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bf16": True},
        {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
        {"activation_checkpointing": True},
    ],
    ids=["plain", "autocast", "accumulated and clipped", "recomputed"],
)
def test_transformers_trains_to_the_same_bits(settings: dict[str, Any], tmp_path: Path) -> None:
    alone, _, expected = trained_by_transformers(tmp_path, **settings)
    watched, monitor, loss = trained_by_transformers(tmp_path, of_tokens, **settings)
    assert loss == expected and same_bits(alone, watched)
    assert monitor is not None
    dataset = monitor.dataset
    assert list(dataset.step.values) == [0, 2] and (dataset["n_examples"] == 4).all()
    assert not dataset["cosine"].sel(layer="all", space="weight").isnull().any()
    assert "transformer.drop" in dataset.attrs["other_in_training"]
    assert ("gradient_accumulation_steps" in settings) == bool(np.isnan(cosine(dataset)).all())


def test_transformers_gradient_is_the_exact_one_whatever_the_trainer_does_to_it(tmp_path: Path) -> None:
    _, plain, _ = trained_by_transformers(tmp_path, of_tokens, dropout=0.0, max_grad_norm=0.0)
    _, clipped, _ = trained_by_transformers(tmp_path, of_tokens, dropout=0.0, max_grad_norm=0.01)
    _, halved, _ = trained_by_transformers(tmp_path, of_tokens, dropout=0.0, max_grad_norm=0.0, bf16=True)
    assert plain is not None and clipped is not None and halved is not None
    np.testing.assert_allclose(cosine(plain.dataset), 1, rtol=1e-6)
    np.testing.assert_allclose(plain.dataset["grad_relative_error"], 0, atol=1e-5)
    np.testing.assert_allclose(cosine(clipped.dataset), 1, rtol=1e-6)
    assert (clipped.dataset["grad_relative_error"] > 0.9).all()  # as it is: shortened
    assert (cosine(halved.dataset) > 0.99).all() and (cosine(halved.dataset) < 1 - 1e-7).all()
    np.testing.assert_allclose(halved.dataset["loss"][0], plain.dataset["loss"][0], rtol=1e-6)  # in full precision


def test_transformers_checkpoints_hold_the_monitor(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3, "dropout": 0.0}
    whole, uninterrupted, _ = trained_by_transformers(tmp_path, of_tokens, max_steps=6, **saving)
    checkpoint = str(tmp_path / "checkpoint-3")
    resumed, monitor, _ = trained_by_transformers(tmp_path, of_tokens, max_steps=6, resume=checkpoint, **saving)
    assert uninterrupted is not None and monitor is not None and same_bits(whole, resumed)
    times = ["measuring_seconds", "training_seconds"]
    one, other = (each.dataset.drop_vars(times).drop_attrs() for each in (uninterrupted, monitor))
    assert list(other.step.values) == [0, 2, 4]
    assert one.identical(other)


# Lightning, by each of its two names


def lightning_of(name: str) -> Any:
    module = pytest.importorskip(name)
    for logger in (name, name.partition(".")[0], f"{name}.utilities.rank_zero"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    return module


def module_of(lightning: Any, network: nn.Module, manual: bool) -> Any:
    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.automatic_optimization = not manual

        def forward(self, inputs: Tensor) -> Tensor:
            return self.network(inputs)  # type: ignore[no-any-return]

        def training_step(self, pair: Any, index: int) -> Tensor:
            loss = cross_entropy(self(pair[0]), pair[1])
            if manual:
                optimizers = self.optimizers()
                for optimizer in optimizers:
                    optimizer.zero_grad()
                self.manual_backward(loss)
                for optimizer in optimizers:
                    optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            halves = [[*network[0].parameters()], [p for part in network[1:] for p in part.parameters()]]
            if manual:
                return [torch.optim.SGD(half, lr=0.1) for half in halves]
            return torch.optim.Adam(network.parameters(), lr=1e-2)

    return Module()


def trained_by_lightning(
    lightning: Any, network: nn.Module, watched: bool, manual: bool = False, steps: int = STEPS, **settings: Any
) -> Monitor | None:
    module = module_of(lightning, network, manual)
    monitor = fga.Monitor(module, cross_entropy, ESTIMATORS, every=1, guesses=32) if watched else None
    inputs = torch.randn(96, INPUTS, generator=torch.Generator().manual_seed(1))
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if monitor is None else [fga.monitoring.lightning_callback(monitor)],
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trainer.fit(module, DataLoader(TensorDataset(inputs, inputs[:, :CLASSES].argmax(1)), batch_size=16))
    return monitor


# Of Lightning's own settings for a CPU: no worker processes, a 16-bit format that a CPU has.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"name": "pytorch_lightning"},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.1},
        {"accumulate_grad_batches": 2},
        {"manual": True, "steps": 2 * STEPS},
    ],
    ids=["plain", "by its other name", "autocast and clipped", "accumulated", "two optimisers"],
)
def test_lightning_trains_to_the_same_bits(settings: dict[str, Any]) -> None:
    lightning = lightning_of(settings.pop("name", "lightning.pytorch"))
    alone, watched = noisy_network(), noisy_network()
    trained_by_lightning(lightning, alone, False, **settings)
    monitor = trained_by_lightning(lightning, watched, True, **settings)
    assert monitor is not None and same_bits(alone, watched)
    dataset = monitor.dataset
    assert list(dataset.step.values) == list(range(STEPS))  # one for all optimisers
    assert not dataset["cosine"].sel(layer="all", space="weight").isnull().any()
    assert ("accumulate_grad_batches" in settings) == bool(np.isnan(cosine(dataset)).all())


@pytest.mark.filterwarnings("ignore")
def test_lightnings_gradient_is_the_exact_one_whatever_the_trainer_does_to_it() -> None:
    lightning = lightning_of("lightning.pytorch")
    plugins = pytest.importorskip("lightning.pytorch.plugins.precision")

    def errors(**settings: Any) -> tuple[np.ndarray, np.ndarray]:
        monitor = trained_by_lightning(lightning, plain_network(), True, **settings)
        assert monitor is not None
        return cosine(monitor.dataset), monitor.dataset["grad_relative_error"].sel(layer="all").values

    cosines, relative = errors()
    np.testing.assert_allclose(cosines, 1, rtol=1e-6)
    np.testing.assert_allclose(relative, 0, atol=1e-5)
    cosines, relative = errors(manual=True, steps=2 * STEPS)  # before the first optimiser has moved a weight
    np.testing.assert_allclose(relative, 0, atol=1e-5)
    _, relative = errors(gradient_clip_val=0.01)  # which Lightning does after its callbacks
    np.testing.assert_allclose(relative, 0, atol=1e-5)
    # Scaled by 2¹⁶ and unscaled before the callback.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    cosines, relative = errors(plugins=[plugins.MixedPrecision("16-mixed", "cpu", scaler)])
    assert (cosines > 0.99).all() and (cosines < 1 - 1e-9).all() and (relative < 0.1).all()


@pytest.mark.filterwarnings("ignore")
def test_lightnings_checkpoints_hold_the_monitor(tmp_path: Path) -> None:
    lightning = lightning_of("lightning.pytorch")
    network = plain_network()
    module = module_of(lightning, network, False)
    pair = batch(0)
    loader = DataLoader(TensorDataset(*pair), batch_size=8)

    def fitted(steps: int, checkpoint: str | None) -> Monitor:
        monitor = fga.Monitor(network, cross_entropy, "weight", every=1, guesses=32)
        callback = fga.monitoring.lightning_callback(monitor)
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[callback],
        )
        trainer.fit(module, loader, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / "saved.ckpt")
        return monitor

    first = fitted(2, None)
    second = fitted(4, str(tmp_path / "saved.ckpt"))
    assert list(second.dataset.step.values) == [0, 1, 2, 3]
    assert second.dataset.isel(step=slice(2)).drop_attrs().identical(first.dataset.drop_attrs())


def test_the_callback_is_of_the_lightning_that_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    older = lightning_of("pytorch_lightning")
    newer = lightning_of("lightning.pytorch")
    monitor = fga.Monitor(plain_network(), cross_entropy)
    assert isinstance(fga.monitoring.lightning_callback(monitor), newer.Callback)
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    assert isinstance(fga.monitoring.lightning_callback(monitor), older.Callback)


# TensorBoard


def test_tensorboard_reads_back_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    network = plain_network()
    monitor = fga.Monitor(network, cross_entropy, "weight", every=2, guesses=32, layers=True)
    latest = []
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            if monitor.step(*batch(step)):
                fga.monitoring.write_scalars(monitor, writer)
                latest.append(monitor.latest())
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert len(latest) == 2
    for name in latest[0]:
        if name != "step":
            read = events.Scalars(f"fganalysis/{name}")
            assert [event.step for event in read] == [0, 2]
            np.testing.assert_allclose([event.value for event in read], [row[name] for row in latest], rtol=1e-6)
    assert json.dumps(latest)
