"""The study of equilibrium propagation, run whole on tiny networks, and what its page reads from a made-up Dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from studies.equilibrium import __main__ as equilibrium
from studies.equilibrium import page

TINY = {
    "depths": (1, 2),
    "seeds": (0, 1),
    "width": 6,
    "batch": 8,
    "steps": 4,
    "exponents": (-4, -8),
    "tolerances": (1e-3, 1e-11),
    "random_guesses": 64,
    "training_depth": 1,
    "training_steps": 2,
    "device": "cpu",
}


def test_the_study_whole_meets_the_leading_terms_of_theory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = equilibrium.Settings(**TINY, out=tmp_path / "out", page=tmp_path / "page")
    dataset = equilibrium.main(settings)
    text = (tmp_path / "page" / "equilibrium.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    finest = dataset.isel(relaxation=1).sel(layer="all")
    for scheme, power in page.POWERS.items():
        ratio = finest["relative_bias"].sel(scheme=scheme, beta=2.0**-8) / (
            finest["leading"].sel(scheme=scheme) * 2.0 ** (-8 * power)
        )
        assert float(abs(ratio - 1).max()) < 0.02  # Of the next order: 2⁻⁸ times a coefficient of a few.
    one_sided = finest["relative_bias"].sel(scheme="one-sided", beta=2.0**-4)
    np.testing.assert_allclose(finest["random_sign_noise"].sel(beta=2.0**-4), one_sided, rtol=0.15)
    # At the loosest tolerance little of a small nudge arrives.
    small = dataset["relative_bias"].sel(layer="layer_1", beta=2.0**-8)
    assert bool((small.isel(relaxation=0) > 10 * small.isel(relaxation=1)).all())
    assert bool(np.isnan(dataset["cosine"].sel(hidden=1, layer="layer_3")).all())
    assert all(array.attrs["units"] and array.attrs["long_name"] for array in dataset.values())
    for figure in ("bias", "floor", "layers"):
        assert f"(equilibrium_{figure}.png)" in text and (tmp_path / "page" / f"equilibrium_{figure}.png").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exponents": (-1, 0)}, "exponents must be below 0"),
        ({"exponents": (-1,)}, "exponents must be at least 2"),
        ({"seeds": (0,)}, "seeds must be at least 2"),
        ({"tolerances": (0.0,)}, "tolerances must be a finite number above 0"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        equilibrium.Settings(**change)  # type: ignore[arg-type]
