"""What tables, pages and model cards call a metric."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Title:
    """Of a metric.

    Attributes:
        text: the title.
        percent: whether it is a share, which tables for reading show in per cent.
    """

    text: str
    percent: bool = False

    def cell(self, value: float) -> str:
        """The value, as such a table shows it."""
        return f"{100 * value:.1f}" if self.percent else f"{value:.4f}"

    @property
    def head(self) -> str:
        """The title, as such a table shows it."""
        return f"{self.text} %" if self.percent else self.text


_TITLES = {
    "accuracy": Title("accuracy", percent=True),
    "nll": Title("NLL (nats)"),
    "ece": Title("ECE (15 bins)", percent=True),
    "brier": Title("Brier score"),
    # Of real numbers.
    "rmse": Title("RMSE"),
    "crps": Title("CRPS"),
    "pearson": Title("Pearson correlation"),
    "spearman": Title("Spearman correlation"),
    "coverage_90": Title("labels in the 90 % interval", percent=True),
    "width_90": Title("width of the 90 % interval"),
    "quantile_error": Title("calibration error of quantiles", percent=True),
    # Of several labels for a row.
    "subset_accuracy": Title("rows with all labels right", percent=True),
    "micro_f1": Title("micro F1"),
    "macro_f1": Title("macro F1"),
    "macro_auroc": Title("macro AUROC"),
    # Of tokens.
    "entity_precision": Title("precision of entities"),
    "entity_recall": Title("recall of entities"),
    "entity_f1": Title("F1 of entities"),
    # Of texts.
    "perplexity": Title("perplexity"),
    "token_nll": Title("NLL, draws averaged at each token (nats)"),
    "sequence_nll": Title("NLL of a whole completion (nats)"),
    # Of options that are written.
    "unparsed": Title("answers that name no option", percent=True),
    # Of grades.
    "mae": Title("mean distance of the grade"),
    "rps": Title("ranked probability score"),
    "quadratic_kappa": Title("quadratic kappa"),
}


def title_of(metric: str) -> Title:
    """The title of a metric by its name; one that nobody named is called by its name."""
    return _TITLES.get(metric, Title(metric))
