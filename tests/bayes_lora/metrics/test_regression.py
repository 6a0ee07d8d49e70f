"""Real-valued predictions: closed forms of one Gaussian, quadrature by SciPy of mixtures, and what calibration says."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from bayes_lora.errors import ConfigurationError, DataError
from bayes_lora.metrics.regression import RegressionPrediction

NOISES = pytest.mark.parametrize("nu", [None, 3.0, 30.0], ids=["Gaussian", "t(3)", "t(30)"])


UNEQUAL = pytest.mark.parametrize("unequal", [False, True], ids=["one noise", "a noise for each draw"])


def drawn(
    nu: float | None, num_samples: int = 6, spread: float = 1.0, num_rows: int = 5, unequal: bool = False
) -> RegressionPrediction:
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(num_samples, num_rows, 2, generator=generator, dtype=torch.double)
    labels = 1.5 * torch.randn(num_rows, 2, generator=generator, dtype=torch.double)
    scale = torch.tensor([0.4, 1.3], dtype=torch.double)
    if unequal:
        scale = scale * torch.linspace(0.5, 2, num_samples, dtype=torch.double).unsqueeze(-1)
    return RegressionPrediction(logits, labels, scale, nu)


def mixture(prediction: RegressionPrediction, row: int, output: int) -> list[Any]:
    """SciPy's distribution under each draw."""
    scales = prediction.scales[:, 0, output].tolist()
    nu = prediction.degrees_of_freedom
    build: Any = stats.norm if nu is None else lambda loc, scale: stats.t(nu, loc, scale)
    locations = prediction.logits[:, row, output].tolist()
    return [build(*of_draw) for of_draw in zip(locations, scales, strict=True)]


def cdf(prediction: RegressionPrediction, row: int, output: int, value: float) -> float:
    return float(np.mean([of.cdf(value) for of in mixture(prediction, row, output)]))


@NOISES
@UNEQUAL
def test_densities_and_moments_by_hand(nu: float | None, unequal: bool) -> None:
    prediction = drawn(nu, unequal=unequal)
    assert prediction.labels is not None
    for row in range(5):
        parts = [
            np.array([of.pdf(float(prediction.labels[row, output])) for of in mixture(prediction, row, output)])
            for output in range(2)
        ]
        assert float(prediction.log_density[row]) == pytest.approx(math.log((parts[0] * parts[1]).mean()), rel=1e-9)
        for output in range(2):
            draws = mixture(prediction, row, output)
            means, variances = (np.array([getattr(of, what)() for of in draws]) for what in ("mean", "var"))
            assert float(prediction.mean[row, output]) == pytest.approx(means.mean(), rel=1e-9)
            assert float(prediction.epistemic_variance[row, output]) == pytest.approx(means.var(), rel=1e-9)
            assert float(prediction.noise_variance[output]) == pytest.approx(variances.mean(), rel=1e-9)
            total = variances.mean() + means.var()
            assert float(prediction.total_variance[row, output]) == pytest.approx(total, rel=1e-9)


@NOISES
@pytest.mark.parametrize(("spread", "unequal"), [(0.0, False), (30.0, False), (1.0, True)])
def test_the_crps_is_its_integral(nu: float | None, spread: float, unequal: bool) -> None:
    prediction = drawn(nu, num_samples=3, spread=spread, num_rows=1, unequal=unequal)
    assert prediction.labels is not None
    for row in range(1):
        for output in range(2):
            label = float(prediction.labels[row, output])
            middle = sorted([label, *(float(x) for x in prediction.logits[:, row, output])])
            below, above = (
                integrate.quad(of, *bounds, points=None if math.inf in map(abs, bounds) else middle, limit=2000)[0]
                for of, bounds in (
                    (lambda x, r=row, o=output: cdf(prediction, r, o, x) ** 2, (label - 300, label)),
                    (lambda x, r=row, o=output: (1 - cdf(prediction, r, o, x)) ** 2, (label, label + 300)),
                )
            )
            assert float(prediction.crps[row, output]) == pytest.approx(below + above, rel=1e-5, abs=1e-5)


def test_the_crps_of_one_gaussian_in_closed_form() -> None:
    """Gneiting and Raftery 2007, equation 21: sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi))."""
    prediction = drawn(None, num_samples=1)
    assert prediction.labels is not None
    z = ((prediction.labels - prediction.logits[0]) / prediction.noise_scale).numpy()
    exact = prediction.noise_scale.numpy() * (
        z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi)
    )
    torch.testing.assert_close(prediction.crps, torch.from_numpy(exact), rtol=1e-9, atol=1e-11)


@NOISES
@UNEQUAL
def test_quantiles_are_where_the_distribution_function_says(nu: float | None, unequal: bool) -> None:
    prediction = drawn(nu, spread=3.0, unequal=unequal)
    for probability in (0.01, 0.3, 0.95):
        found = prediction.quantile(probability)
        torch.testing.assert_close(prediction.cdf(found), torch.full_like(found, probability), rtol=1e-9, atol=1e-12)
        assert cdf(prediction, 2, 1, float(found[2, 1])) == pytest.approx(probability)
    with pytest.raises(ConfigurationError, match="probability=1"):
        prediction.quantile(1)


@NOISES
def test_drawn_out_its_quantiles_are_further_from_the_mean(nu: float | None) -> None:
    prediction = drawn(nu)
    wide = prediction.spread(2.5)
    torch.testing.assert_close(wide.mean, prediction.mean)
    torch.testing.assert_close(wide.total_variance, 2.5**2 * prediction.total_variance)
    for probability in (0.05, 0.5, 0.8):
        away = prediction.quantile(probability) - prediction.mean
        torch.testing.assert_close(wide.quantile(probability), prediction.mean + 2.5 * away, rtol=1e-9, atol=1e-9)


def simulated(noise_scale: float, nu: float | None = None, num_rows: int = 4000) -> RegressionPrediction:
    """Labels of noise 1 around one of the draws."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, num_rows, 1, generator=generator, dtype=torch.double)
    labels = logits[0] + torch.randn(num_rows, 1, generator=generator, dtype=torch.double)
    return RegressionPrediction(logits, labels, torch.tensor([noise_scale], dtype=torch.double), nu)


def test_right_predictives_cover_and_wrong_ones_do_not() -> None:
    right, narrow, wide = (simulated(scale).metrics() for scale in (1.0, 0.4, 3.0))
    error = math.sqrt(0.9 * 0.1 / 4000)
    assert abs(right["coverage_90"] - 0.9) < 4 * error
    assert right["quantile_error"] < 0.01
    assert narrow["coverage_90"] < 0.9 - 10 * error
    assert wide["coverage_90"] > 0.9 + 4 * error
    assert min(narrow["quantile_error"], wide["quantile_error"]) > 0.02
    assert right["nll"] < min(narrow["nll"], wide["nll"])
    assert right["crps"] < min(narrow["crps"], wide["crps"])
    assert narrow["width_90"] < right["width_90"] < wide["width_90"]


def test_metrics_of_points() -> None:
    prediction = drawn(None)
    assert prediction.labels is not None
    metrics = prediction.metrics()
    error = (prediction.mean - prediction.labels).numpy()
    assert metrics["rmse"] == pytest.approx(np.sqrt((error**2).mean()))
    by_output = [stats.spearmanr(prediction.mean[:, o], prediction.labels[:, o]).statistic for o in range(2)]
    assert metrics["spearman"] == pytest.approx(np.mean(by_output))
    constant = RegressionPrediction(torch.zeros(1, 4, 1), torch.ones(4, 1), torch.ones(1))
    assert math.isnan(constant.metrics()["pearson"])


def test_what_has_no_metrics() -> None:
    prediction = drawn(None)
    with pytest.raises(DataError, match="no labels"):
        RegressionPrediction(prediction.logits, None, prediction.noise_scale).metrics()
    with pytest.raises(DataError, match="predictions that are numbers"):
        RegressionPrediction(prediction.logits * math.nan, prediction.labels, prediction.noise_scale).metrics()
    with pytest.raises(DataError, match="at least one row"):
        RegressionPrediction(torch.zeros(1, 0, 1), torch.zeros(0, 1), torch.ones(1)).metrics()


def test_mutual_information_is_that_of_gaussians() -> None:
    """Many draws from a Gaussian: exact. Of two draws it is no less than the true one, by quadrature."""
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(200, 1, 1)))
    many = RegressionPrediction(logits, None, torch.tensor([0.5]))
    exact = 0.5 * np.log(1 + logits.var(correction=0).item() / 0.25)
    assert many.mutual_information.item() == pytest.approx(exact, rel=1e-12)
    two = RegressionPrediction(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1), None, torch.tensor([0.5]))
    y = np.linspace(-6, 6, 20_001)
    mixture = (stats.norm.pdf(y, -1, 0.5) + stats.norm.pdf(y, 1, 0.5)) / 2
    true = -np.trapezoid(mixture * np.log(mixture), y) - stats.norm(0, 0.5).entropy()
    assert true < np.log(2)
    assert two.mutual_information.item() > true
