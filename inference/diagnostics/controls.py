"""What the diagnostics are good for, as a table: which of them must flag which wrong posterior.

The tests hold every entry to it over many seeds, on problems of known posterior, and `claims_table` is the same table
for people.
"""

from typing import Literal

Claim = Literal["must", "never"]

# Rates that the tests hold the claims to.
POWER = 0.7  # with which a control that must be flagged is, at least
FALSE_ALARMS = 0.02  # with which one that must never be flagged is, at most

CONTROLS: dict[str, str] = {
    "variance x 25": "draws 5 times as far from the posterior mean",
    "variance / 25": "draws a fifth as far from the posterior mean",
    "shifted mean": "draws moved by 4 posterior standard deviations in every entry of LoRA-A",
    "unconverged run": "fits from random starts, stopped early",
    "collapsed mixture": "alpha such that one component has all the weight",
    "prior": "nothing learned: the prior itself",
    "silent noise": "the right posterior of an adapter whose LoRA-B is 0",
    "right posterior": "the posterior itself; for fits, converged ones",
}
"""The posteriors that the diagnostics are tried on, wrong ones and the right one, each in words."""

CLAIMS: dict[str, dict[str, Claim]] = {
    "convergence": {"unconverged run": "must", "right posterior": "never"},
    "seed_spread": {"unconverged run": "must", "right posterior": "never"},
    "prior_to_posterior": {"prior": "must", "right posterior": "never"},
    "mixture": {"collapsed mixture": "must", "right posterior": "never"},
    "psis_k_hat": {
        "variance x 25": "must",
        "variance / 25": "must",
        "shifted mean": "must",
        "unconverged run": "must",
        "right posterior": "never",
    },
    "loo_pit": {"variance x 25": "must", "shifted mean": "must", "right posterior": "never"},
    "check_label_rates": {"shifted mean": "must", "variance x 25": "never", "right posterior": "never"},
    "check_accuracy": {"shifted mean": "must", "right posterior": "never"},
    "check_confidence": {"shifted mean": "must", "right posterior": "never"},
    "uncertainty_map": {"silent noise": "must", "right posterior": "never"},
}
"""Diagnostic -> control -> claim. Where there is none, the diagnostic may flag the control or not."""


def claims_table() -> str:
    """The table in Markdown: a row for each diagnostic, a column for each control; "may" is written as a dash.

    Example:
        >>> claims_table().splitlines()[2].split(" | ")[0]
        '| `convergence`'
    """
    rows = [["diagnostic", *CONTROLS], ["---"] * (len(CONTROLS) + 1)]
    rows += [[f"`{name}`", *(claims.get(control, "-") for control in CONTROLS)] for name, claims in CLAIMS.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
