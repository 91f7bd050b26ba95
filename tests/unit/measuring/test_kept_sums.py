"""A sample that goes on from kept sums has the numbers of one that was drawn at once, to the last bit."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import fganalysis as fga
from fganalysis.capturing.snapshot import Snapshot
from fganalysis.measuring import drawing, kept_sums, parts_of_blocks

BLOCK = 4
SHORT = 64 * BLOCK  # The groups are as many from here on, at multiples of this.


def snapshot_of(seed: int = 0) -> Snapshot:
    network = fga.networks.mlp([6, 8, 5], bias=True, seed=seed)
    inputs = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    return fga.capture(network, cross_entropy, inputs, torch.arange(7) % 5)


def sampled(n_guesses: int, path: Path | None = None, key: str = "activity", **settings):  # type: ignore[no-untyped-def]
    snapshot = settings.pop("snapshot", None) or snapshot_of()
    return fga.sample(snapshot, key, n_guesses, block_size=BLOCK, keep_sums=path, **settings)


@pytest.mark.parametrize("key", ["activity", "weight", "upstream", "minibatch", "local_loss"])
def test_a_longer_run_continues_and_is_that_of_all_guesses_at_once(key: str, tmp_path: Path) -> None:
    path = tmp_path / "sums"
    assert sampled(SHORT, path, key).identical(sampled(SHORT, key=key))
    longer = sampled(3 * SHORT, path, key)
    assert longer.identical(sampled(3 * SHORT, key=key))
    assert longer.identical(sampled(3 * SHORT, path, key, workers=1))


def test_registered_metrics_continue_too(tmp_path: Path) -> None:
    from fganalysis.papers import wang2025  # noqa: F401

    path = tmp_path / "sums"
    sampled(SHORT, path)
    assert sampled(2 * SHORT, path).identical(sampled(2 * SHORT))


def test_only_what_is_missing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, drawn = tmp_path / "sums", []
    original = parts_of_blocks.guesses_of

    def counted(estimator, snapshot, n_guesses, generator):  # type: ignore[no-untyped-def]
        drawn.append(n_guesses)
        return original(estimator, snapshot, n_guesses, generator)

    monkeypatch.setattr(parts_of_blocks, "guesses_of", counted)
    sampled(SHORT, path)
    drawn.clear()
    sampled(2 * SHORT, path)
    assert drawn.count(BLOCK) == 64
    drawn.clear()
    sampled(2 * SHORT, path)
    assert drawn.count(BLOCK) == 0


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "SECONDS_BETWEEN", 0.0)
    path, original, calls = tmp_path / "sums", parts_of_blocks.guesses_of, []

    def cut_off(*arguments):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) > 600:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(parts_of_blocks, "guesses_of", cut_off)
    with pytest.raises(KeyboardInterrupt):
        sampled(16 * SHORT, path, workers=1)
    monkeypatch.setattr(parts_of_blocks, "guesses_of", original)
    assert path.exists()
    assert sampled(16 * SHORT, path).identical(sampled(16 * SHORT))


def test_a_last_block_that_is_cut_short_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    n_guesses = 2 * SHORT - 3  # The last block has one guess.
    assert sampled(n_guesses, path).identical(sampled(n_guesses))
    assert sampled(2 * SHORT, path).identical(sampled(2 * SHORT))


def test_sums_of_anything_else_are_set_aside_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "sums"
    others = {
        "seed": {"seed": 1},
        "estimator": {"key": "weight"},
        "snapshot": {"snapshot": snapshot_of(seed=3)},
    }
    for number, (differing, settings) in enumerate(others.items(), start=1):
        sampled(SHORT, path)
        with caplog.at_level(logging.WARNING):
            changed = sampled(SHORT, path, **settings)  # type: ignore[arg-type]
        assert changed.identical(sampled(SHORT, **settings))  # type: ignore[arg-type]
        assert differing in caplog.text and "sums of another sample" in caplog.text
        assert len(list(tmp_path.glob("sums.damaged*"))) == 2 * number - 1
        caplog.clear()


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_damaged_files_are_never_used(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "sums"
    sampled(SHORT, path)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    wrong = {"cut": content[: len(content) // 2], "foreign": b"hello\nworld\n", "empty": b""}.get(damage, content)
    path.write_bytes(bytes(wrong))
    with caplog.at_level(logging.WARNING):
        assert sampled(SHORT, path).identical(sampled(SHORT))
    assert "damaged" in caplog.text
    assert sampled(SHORT, path).identical(sampled(SHORT))


@pytest.mark.parametrize("fewer", [SHORT, 2 * SHORT - 3])
def test_fewer_guesses_than_are_kept_are_drawn_anew(fewer: int, tmp_path: Path) -> None:
    path = tmp_path / "sums"
    sampled(2 * SHORT, path)
    content = path.read_bytes()
    assert sampled(fewer, path).identical(sampled(fewer))
    assert path.read_bytes() == content


def test_guesses_that_are_not_written_out_keep_no_sums(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep_sums is for guesses that are written out whole"):
        fga.sample(snapshot_of(), "weight", 64, by_law=True, keep_sums=tmp_path / "sums")
    with pytest.raises(ValueError, match="keep_sums must be a path"):
        fga.sample(snapshot_of(), "weight", 64, keep_sums=3)  # type: ignore[arg-type]


def test_what_the_sums_depend_on_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    sampled(SHORT, path)
    made_of = json.loads(path.read_bytes().split(b"\n")[1])
    assert {"seed", "step", "estimator", "block_size", "groups", "snapshot", "versions"} <= set(made_of)
    assert kept_sums.SECONDS_BETWEEN > 0
