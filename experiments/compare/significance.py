"""Is one method of a study better than another?"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from bayes_lora.experiments.compare.columns import of_set
from bayes_lora.experiments.compare.method_spec import Method
from bayes_lora.experiments.compare.running import Results, outside_part
from bayes_lora.inference.storage.predictions import StoredPrediction, require_same_rows
from bayes_lora.metrics.bootstrap import resampled
from bayes_lora.metrics.contrast import Contrast
from bayes_lora.metrics.prediction import Prediction
from bayes_lora.metrics.uncertainty import batched_area_under_risk_coverage, batched_auroc

Differences = dict[tuple[Method, Method], dict[str, Contrast]]  # by method, reference, and metric


def significance(results: Results, references: Sequence[Method]) -> Differences:
    """Paired bootstrap over examples: each method minus each reference, on the same rows and seeds.

    Of the metrics that are means over rows, and of the areas: under the risk-coverage curve, and of the detection of
    errors and of out-of-distribution rows. Rows and out-of-distribution rows are drawn apart, as many of each as there
    are.
    """
    judged: dict[tuple[Method, int], _Judged] = {}
    for of in results.methods:
        judged |= {(of, seed): _Judged(results, of, seed) for seed in results.seeds if results.is_done(of, seed)}
    found: Differences = {}
    for reference in references:
        for method in results.methods:
            seeds = [seed for seed in results.seeds if {(method, seed), (reference, seed)} <= judged.keys()]
            if method == reference or not seeds:
                continue
            for seed in seeds:
                require_same_rows(results.read(method, seed), results.read(reference, seed))
            ours, theirs = ([judged[of, seed] for seed in seeds] for of in (method, reference))
            found[method, reference] = {
                metric: Contrast.of_means(*(torch.stack([each.losses[metric] for each in of]) for of in (ours, theirs)))
                for metric in ours[0].losses
            } | {
                metric: Contrast.of_resampled(*([each.areas[metric] for each in of] for of in (ours, theirs)))
                for metric in ours[0].areas
            }
    return found


@dataclass(frozen=True)
class _Judged:
    """What the predictions of one method and seed are tested by; computed once, and compared with many."""

    results: Results
    method: Method
    seed: int

    @cached_property
    def _stored(self) -> StoredPrediction:
        return self.results.read(self.method, self.seed)

    @cached_property
    def losses(self) -> dict[str, Tensor]:
        """(example,) of each metric that is a mean over rows."""
        return self._stored.likelihood.losses(self._stored.prediction)

    @cached_property
    def areas(self) -> dict[str, Tensor]:
        """(1 + resample,) of each metric that is none, by the names of `all_metrics`."""
        own, found = self._stored.likelihood.uncertainty(self._stored.prediction), {}
        if isinstance(self._stored.prediction, Prediction):  # rows are right or wrong
            wrong = self.losses["accuracy"] == 0
            found = {
                "aurc": resampled(partial(batched_area_under_risk_coverage, own["max_prob"], wrong), len(wrong)),
                "misclassification_auroc_entropy": resampled(partial(batched_auroc, own["entropy"], wrong), len(wrong)),
            }
        for of in self.results.outside if own else ():
            name, inside = next(iter(own.items()))
            outside = self.results.read(self.method, self.seed, outside_part(of))
            other = outside.likelihood.uncertainty(outside.prediction)[name]
            both = torch.cat([inside, other])
            foreign = torch.arange(len(both)) >= len(inside)
            found[of_set("ood_auroc", of)] = resampled(
                partial(batched_auroc, both, foreign), len(both), strata=foreign.long()
            )
        return found
