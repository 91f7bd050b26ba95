import pytest
import torch

from fganalysis.noise import Gaussian, Noise, Rademacher, Sphere

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
