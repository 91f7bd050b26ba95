import pytest
import torch

from fganalysis.estimators import noise as noise_laws
from fganalysis.estimators.noise import Gaussian, Noise, Rademacher, Sphere, draw_in_parts

LAWS = [Gaussian(), Rademacher(), Sphere()]
LIKE = torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_moments_are_those_that_the_law_states(law: Noise) -> None:
    # 400 000 vectors: a relative error of 1 % in a fourth moment is above 5 standard errors.
    n = 3
    noise = law.draw((400_000, n), torch.Generator().manual_seed(0), LIKE)
    checks = {
        "mean": (noise[:, 0], 0.0),
        "variance": (noise[:, 0] ** 2, 1.0),
        "correlation": (noise[:, 0] * noise[:, 1], 0.0),
        "fourth": (noise[:, 0] ** 4, law.fourth(n)),
        "pair": (noise[:, 0] ** 2 * noise[:, 1] ** 2, law.pair(n)),
    }
    for name, (values, expected) in checks.items():
        error = float(values.std()) / len(values) ** 0.5
        assert abs(float(values.mean()) - expected) <= 4 * error + 1e-12, name


def test_a_wrong_fourth_moment_would_be_seen() -> None:
    noise = Gaussian().draw((400_000,), torch.Generator().manual_seed(0), LIKE)
    error = float((noise**4).std()) / 400_000**0.5
    assert abs(float((noise**4).mean()) - Sphere().fourth(3)) > 4 * error


def test_sphere_has_its_radius_over_several_dimensions() -> None:
    noise = Sphere().draw((5, 3, 4), torch.Generator().manual_seed(0), LIKE, vector_dims=2)
    torch.testing.assert_close(noise.flatten(1).norm(dim=1), torch.full((5,), 12.0**0.5, dtype=torch.float64))


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_draws_follow_the_generator_alone(law: Noise) -> None:
    before = torch.random.get_rng_state()
    first = law.draw((4, 3), torch.Generator().manual_seed(1), LIKE)
    second = law.draw((4, 3), torch.Generator().manual_seed(1), LIKE)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(torch.random.get_rng_state(), before)
    assert isinstance(law, Noise)


def test_normals_drawn_in_parts_depend_on_the_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_laws, "NUMBERS_IN_PART", 64)
    before, n_threads = torch.random.get_rng_state(), torch.get_num_threads()
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    found = []
    try:
        for generator, threads in zip(generators, (1, 4), strict=True):
            torch.set_num_threads(threads)
            found.append([draw_in_parts((50, 40), generator, LIKE) for _ in range(2)])
    finally:
        torch.set_num_threads(n_threads)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)
    # No two parts are alike, of one draw or of two.
    parts = torch.cat([draw.flatten()[: 31 * 64].view(31, 64) for draw in found[0]])
    assert len(parts.unique(dim=0)) == 62


def test_normals_drawn_in_parts_are_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 000 numbers in parts of 1000: moments and the correlation between parts to 4 standard errors."""
    monkeypatch.setattr(noise_laws, "NUMBERS_IN_PART", 1000)
    noise = draw_in_parts((400, 1000), torch.Generator().manual_seed(0), LIKE)
    neighbours = noise[1:] * noise[:-1]
    for values, expected in ((noise, 0.0), (noise**2, 1.0), (noise**3, 0.0), (noise**4, 3.0), (neighbours, 0.0)):
        error = float(values.std()) / values.numel() ** 0.5
        assert abs(float(values.mean()) - expected) <= 4 * error


def test_normals_are_drawn_in_parts_in_inference_mode_too() -> None:
    """Threads are not in the mode of the one that asks, which made the memory."""
    shape = (2, noise_laws.NUMBERS_IN_PART)
    with torch.inference_mode():
        inside = draw_in_parts(shape, torch.Generator().manual_seed(0), LIKE)
    assert torch.equal(inside.clone(), draw_in_parts(shape, torch.Generator().manual_seed(0), LIKE))
