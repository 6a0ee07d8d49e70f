"""Diagnostics that fit variational inference: what is known of a posterior that was fitted, and what is wrong with it.

    convergence          had the loss stopped falling?
    seed_spread          do fits of other seeds give the same posterior?
    prior_to_posterior   what did the data change in each adapter, in nats?
    mixture              are the mixture's components in use?
    psis_k_hat           is the guide close to the posterior? (small networks)
    loo_pit              do the labels surprise the model as often as it says? (classes, grades, numbers)
    check_labels         do labels that the model draws look like those observed?
    check_accuracy, check_confidence
                         is it right as often as it says? (choices between classes)
    check_intervals      are labels in its intervals as often as it says? (numbers)
    check_surprise       are tokens as surprising as it says? (language models)
    uncertainty_map      which adapters carry the uncertainty of the predictions?
    draws_needed, enough_draws
                         how many draws does the predictive take, and is it far from the mean at all?
    rank_truth           is a way of sampling posteriors right where the truth is known? (simulations; gives `Ranks`)

Each but the last returns a frozen dataclass with `flagged`, whether something is wrong, and `message`, the finding in
words; its docstring says what it can tell and what it cannot. `controls.CLAIMS` is the table of the wrong posteriors
that each must flag. `loo`, `waic`, `elpd_held_out` and `compare` estimate how well new rows would be predicted, from
the log likelihoods that `to_inference_data` keeps.

R-hat and the effective sample size are not offered. They ask whether the draws of a Markov chain have forgotten where
they started and how much they repeat each other. Draws of a guide are independent by construction, so R-hat is 1 and
the effective sample size is the number of draws for every guide, the worst as well as the best: numbers that look
like an approval and contain none.
"""

from bayes_lora.extras import require_extra

require_extra("diagnostics", "bayes_lora.inference.diagnostics", "arviz", "xarray", "pandas", "h5netcdf", "matplotlib")

from bayes_lora.inference.diagnostics.controls import CLAIMS, CONTROLS, claims_table
from bayes_lora.inference.diagnostics.convergence import Convergence, convergence
from bayes_lora.inference.diagnostics.enough_draws import EnoughDraws, draws_needed, enough_draws
from bayes_lora.inference.diagnostics.information import AdapterChange, PriorToPosterior, prior_to_posterior
from bayes_lora.inference.diagnostics.leave_one_out import ELPD, compare, elpd_held_out, loo, waic
from bayes_lora.inference.diagnostics.loo_pit import LooPit, loo_pit
from bayes_lora.inference.diagnostics.mixture import Mixture, mixture
from bayes_lora.inference.diagnostics.pareto import ParetoCheck, psis_k_hat
from bayes_lora.inference.diagnostics.predictive_checks import (
    check_accuracy,
    check_confidence,
    check_intervals,
    check_label_rates,
    check_labels,
)
from bayes_lora.inference.diagnostics.replicated_labels import PredictiveCheck
from bayes_lora.inference.diagnostics.simulation_based_calibration import Ranks, rank_truth
from bayes_lora.inference.diagnostics.spread import AdapterSpread, SeedSpread, seed_spread
from bayes_lora.inference.diagnostics.surprise import Surprise, check_surprise
from bayes_lora.inference.diagnostics.uncertainty_map import (
    PartUncertainty,
    Uncertainty,
    UncertaintyMap,
    uncertainty_map,
)

__all__ = [
    "CLAIMS",
    "CONTROLS",
    "ELPD",
    "AdapterChange",
    "AdapterSpread",
    "Convergence",
    "EnoughDraws",
    "LooPit",
    "Mixture",
    "ParetoCheck",
    "PartUncertainty",
    "PredictiveCheck",
    "PriorToPosterior",
    "Ranks",
    "SeedSpread",
    "Surprise",
    "Uncertainty",
    "UncertaintyMap",
    "check_accuracy",
    "check_confidence",
    "check_intervals",
    "check_label_rates",
    "check_labels",
    "check_surprise",
    "claims_table",
    "compare",
    "convergence",
    "draws_needed",
    "elpd_held_out",
    "enough_draws",
    "loo",
    "loo_pit",
    "mixture",
    "prior_to_posterior",
    "psis_k_hat",
    "rank_truth",
    "seed_spread",
    "uncertainty_map",
    "waic",
]
