"""Every argument of every function and method for arrays, with values of every wrong kind: right, or one sentence."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fganalysis as fga
from fganalysis.measuring import curvature, gradient_stream, subspace
from tests.laws import tiny_snapshot

ROOT = Path(fga.__file__).parent
MATRIX = np.random.default_rng(0).normal(size=(8, 5))
BASIS = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 3)))[0]
VALUES = np.linalg.svd(MATRIX)[1]
MODES = subspace.modes(MATRIX)
STREAM = gradient_stream.StreamingSubspace.of(MATRIX)
INCREMENTAL = gradient_stream.IncrementalSubspace.of(MATRIX, 3)
SNAPSHOT = tiny_snapshot((3, 2, 2), n_examples=3, bias=True)
PRODUCT = curvature.hessian_product(SNAPSHOT)
N_WEIGHTS = sum(tap.weight.numel() for tap in SNAPSHOT.taps)
START = np.random.default_rng(2).normal(size=N_WEIGHTS)
UPPER = torch.triu(torch.ones(N_WEIGHTS, N_WEIGHTS, dtype=torch.float64))

Call = Callable[..., Any]
CALLS: dict[str, tuple[Call, dict[str, Any]]] = {
    "Modes": (subspace.Modes, {"values": VALUES, "vectors": MODES.vectors, "gap": 1e-10, "beyond": 0.0}),
    "leading": (MODES.leading, {"k": 2}),
    "singular_values": (subspace.singular_values, {"matrix": MATRIX}),
    "modes": (subspace.modes, {"matrix": MATRIX}),
    "randomised_modes": (
        subspace.randomised_modes,
        {"matrix": MATRIX, "k": 2, "seed": 0, "oversampling": 2, "power_iterations": 1},
    ),
    "energy_curve": (subspace.energy_curve, {"values": VALUES}),
    "stable_rank": (subspace.stable_rank, {"values": VALUES}),
    "entropy_rank": (subspace.entropy_rank, {"values": VALUES}),
    "participation_ratio": (subspace.participation_ratio, {"values": VALUES}),
    "srank": (subspace.srank, {"values": VALUES, "delta": 0.5}),
    "modes_for_energy": (subspace.modes_for_energy, {"values": VALUES, "share": 0.5}),
    "overlap_curve": (subspace.overlap_curve, {"gradient": MATRIX, "basis": BASIS}),
    "overlap_curve_of_modes": (subspace.overlap_curve, {"gradient": MATRIX, "basis": MODES}),
    "principal_angles": (subspace.principal_angles, {"first": BASIS, "second": BASIS[:, :2]}),
    "random_overlap": (subspace.random_overlap, {"k": np.arange(4), "unit": 5}),
    "random_srank": (subspace.random_srank, {"example": 4, "unit": 5, "delta": 0.5}),
    "random_alignment": (subspace.random_alignment, {"k": 2, "other_k": np.arange(4), "unit": 5}),
    "StreamingSubspace": (
        gradient_stream.StreamingSubspace,
        {"n_examples": 8, "scaled_gram": STREAM.scaled_gram, "precision": 1e-16, "scale": 1.0},
    ),
    "StreamingSubspace.of": (gradient_stream.StreamingSubspace.of, {"gradients": MATRIX}),
    "StreamingSubspace.add": (STREAM.add, {"gradients": MATRIX}),
    "StreamingSubspace.merge": (STREAM.merge, {"other": STREAM}),
    "IncrementalSubspace": (
        gradient_stream.IncrementalSubspace,
        {"rank": 3, "n_examples": 8, "rows": BASIS.T, "remainder": 0.0, "lost": 0.0, "precision": 1e-16},
    ),
    "IncrementalSubspace.of": (gradient_stream.IncrementalSubspace.of, {"gradients": MATRIX, "rank": 3}),
    "IncrementalSubspace.add": (INCREMENTAL.add, {"gradients": MATRIX}),
    "IncrementalSubspace.merge": (INCREMENTAL.merge, {"other": INCREMENTAL}),
    "hessian_product": (curvature.hessian_product, {"snapshot": SNAPSHOT}),
    "gauss_newton_product": (curvature.gauss_newton_product, {"snapshot": SNAPSHOT}),
    "product": (PRODUCT, {"vector": torch.from_numpy(START)}),
    "dominant": (
        curvature.dominant,
        {"product": PRODUCT, "snapshot": SNAPSHOT, "k": 2, "tolerance": 1e-6, "start": START, "seed": 0},
    ),
}
WRONG: dict[str, Any] = {
    **{"None": None, "text": "a", "True": True, "half": 1.5, "minus": -1, "nan": np.nan, "inf": np.inf, "zero": 0},
    **{"huge": 2**70, "complex": 1j, "list": [], "numbers": [1.0, 2.0], "object": object(), "class": int, "dict": {}},
    **{"np.float64": np.float64(2.5), "np.int64": np.int64(-3), "bytes": b"a", "slice": slice(2), "float": 2.0},
    **{"shorter": lambda vector: vector[:2], "no argument": lambda: None, "nothing": lambda vector: None},
    **{"triangle": lambda vector: UPPER @ vector, "whole product": lambda vector: vector.long()},
    **{"other sizes": lambda vector: torch.ones(3, 4) @ vector, "complex product": lambda vector: vector + 0j},
    **{"snapshot": SNAPSHOT, "network": SNAPSHOT.network, "modes": MODES, "stream": STREAM, "incremental": INCREMENTAL},
    **{
        "empty": np.zeros((0, 5)),
        "no columns": np.zeros((8, 0)),
        "scalar": np.ones(()),
        "nan scalar": np.array(np.nan),
    },
    **{"integers": np.ones((8, 5), dtype=int), "booleans": np.ones((8, 5), dtype=bool), "complexes": MATRIX + 0j},
    **{"objects": MATRIX.astype(object), "texts": MATRIX.astype(str), "half precision": MATRIX.astype(np.float16)},
    **{"masked": np.ma.masked_array(MATRIX, MATRIX > 0), "records": np.zeros((8, 5), dtype=[("a", float), ("b", int)])},
    **{"dates": np.zeros((8, 5), dtype="M8[s]"), "four dims": np.ones((2, 3, 4, 7)), "other units": np.ones((8, 6))},
    **{"NaN entry": np.full((8, 5), np.nan), "infinite entry": np.full((8, 5), -np.inf), "row of 7": np.ones(7)},
    **{"huge entries": np.full((8, 5), 1e308), "tensor": torch.from_numpy(MATRIX), "float32 tensor": torch.ones(5)},
    **{
        "meta": torch.ones(8, 5, device="meta"),
        "sparse": torch.eye(5).to_sparse(),
        "whole tensor": torch.ones(5).int(),
    },
    **{"bfloat16": torch.ones(8, 5, dtype=torch.bfloat16), "complex tensor": torch.ones(8, 5) + 0j},
    **{"nan scalar": np.array(np.nan), "whole tensor": torch.ones(5).int()},
    **{"parameter": torch.nn.Parameter(torch.ones(8, 6)), "scalar tensor": torch.tensor(2)},
}
# Which of them are right for an argument all the same.
MATRICES = {"other units", "tensor", "parameter"}
SPECTRA = {"four dims", "other units", "row of 7", "huge entries", "float32 tensor", "parameter"}
ROWS = {*MATRICES, "four dims", "row of 7", "float32 tensor"}
POSITIVE = {"half", "huge", "float", "np.float64"}
DIMENSIONS = {"zero", "scalar"}
MANY = {*DIMENSIONS, "integers", "four dims", "other units", "row of 7"}
RIGHT: dict[str, dict[str, set[str]]] = {
    # The vectors are checked where they are used: it costs a product.
    "Modes": {"vectors": {"huge entries"}, "gap": {*POSITIVE, "zero"}, "beyond": {*POSITIVE, "zero"}},
    "singular_values": {"matrix": {*MATRICES, "four dims"}},
    "modes": {"matrix": {*MATRICES, "four dims"}},
    "randomised_modes": {
        "matrix": MATRICES,
        **{"seed": {"zero"}, "oversampling": {"zero", "huge"}, "power_iterations": {"zero"}},
    },
    **{name: {"values": SPECTRA} for name in ("energy_curve", "stable_rank", "entropy_rank", "participation_ratio")},
    "modes_for_energy": {"values": SPECTRA},
    "srank": {"values": SPECTRA, "delta": {"zero"}},
    "random_srank": {"delta": {"zero"}},
    "overlap_curve": {"gradient": {"huge entries"}, "basis": {"modes"}},
    "overlap_curve_of_modes": {"gradient": {"huge entries"}, "basis": {"modes"}},
    "random_overlap": {"k": MANY},
    "random_alignment": {"k": DIMENSIONS, "other_k": MANY},
    "StreamingSubspace": {"n_examples": {"huge"}, "precision": POSITIVE, "scale": POSITIVE},
    "StreamingSubspace.of": {"gradients": {*ROWS, "huge entries"}},
    "StreamingSubspace.add": {"gradients": {"huge entries"}},
    "StreamingSubspace.merge": {"other": {"stream"}},
    "IncrementalSubspace": {
        **{"rank": {"huge"}, "n_examples": {"huge"}, "precision": POSITIVE},
        **{"remainder": {*POSITIVE, "zero"}, "lost": {*POSITIVE, "zero"}},
    },
    "IncrementalSubspace.of": {"gradients": ROWS, "rank": {"huge"}},
    "IncrementalSubspace.merge": {"other": {"incremental"}},
    "hessian_product": {"snapshot": {"snapshot"}},
    "gauss_newton_product": {"snapshot": {"snapshot"}},
    "dominant": {"snapshot": {"snapshot"}, "tolerance": {"zero"}, "start": {"None"}, "seed": {"zero"}},
}


@pytest.mark.parametrize("call", CALLS)
def test_every_value_is_right_or_refused_in_one_sentence(call: str) -> None:
    function, arguments = CALLS[call]
    function(**arguments)
    wrong = []
    for argument in arguments:
        for name, value in WRONG.items():
            try:
                function(**arguments | {argument: value})
            except ValueError as error:
                frame, text = traceback.extract_tb(error.__traceback__)[-1], str(error)
                ours = Path(frame.filename).is_relative_to(ROOT) and (frame.line or "").startswith("raise")
                if not ours or len(text) > 300 or "\n" in text:
                    wrong.append(f"{argument} = {name}: {text}")
            except Exception as error:
                wrong.append(f"{argument} = {name}: {type(error).__name__}: {error}")
            else:
                if name not in RIGHT.get(call, {}).get(argument, ()):
                    wrong.append(f"{argument} = {name} is accepted")
    assert not wrong, "\n".join(wrong)
