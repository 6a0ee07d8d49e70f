"""The columns of a comparison's tables."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

_OF_SET = ":"


def of_set(metric: str, name: str) -> str:
    """A metric of how a set of rows from elsewhere is told: ``ood_auroc`` of a built-in task, ``ood_auroc:NAME``."""
    return f"{metric}{_OF_SET}{name}" if name else metric


@dataclass(frozen=True)
class Column:
    """A column of the tables: what it is called, and how a number of it is written."""

    metric: str
    title: str
    factor: float
    digits: int
    higher_is_better: bool | None

    def of(self, metric: str) -> "Column":
        """That of a metric of a set of rows, ``METRIC:NAME``; of any other the column itself."""
        name = metric.partition(_OF_SET)[2]
        return replace(self, metric=metric, title=f"{self.title} {name}") if name else self

    @property
    def base(self) -> str:
        """The metric, whatever set of rows it is of."""
        return self.metric.partition(_OF_SET)[0]


COLUMNS = (
    Column("accuracy", "accuracy %", 100, 1, True),
    Column("spearman", "Spearman", 1, 3, True),
    Column("rmse", "RMSE", 1, 3, False),
    Column("mae", "MAE", 1, 3, False),
    Column("quadratic_kappa", "kappa", 1, 3, True),
    Column("macro_f1", "macro F1", 1, 3, True),
    Column("micro_f1", "micro F1", 1, 3, True),
    Column("macro_auroc", "macro AUROC", 1, 3, True),
    Column("entity_f1", "entity F1", 1, 3, True),
    Column("perplexity", "perplexity", 1, 2, False),
    Column("nll", "NLL", 1, 3, False),
    Column("crps", "CRPS", 1, 3, False),
    Column("rps", "RPS", 1, 3, False),
    Column("coverage_90", "in 90 % int.", 100, 1, None),
    Column("width_90", "width", 1, 3, None),
    Column("quantile_error", "quantiles %", 100, 1, False),
    Column("unparsed", "unparsed %", 100, 1, False),
    Column("ece", "ECE %", 100, 1, False),
    Column("brier", "Brier", 1, 3, False),
    Column("misclassification_auroc_entropy", "AUROC error", 1, 3, True),
    Column("ood_auroc", "AUROC OOD", 1, 3, True),
    Column("aurc", "AURC", 1, 3, False),
    Column("selective_accuracy_80", "acc. at 80 %", 100, 1, True),
    Column("train_seconds", "train s", 1, 0, None),
    Column("predict_seconds", "predict s", 1, 1, None),
    Column("peak_memory_mib", "peak MiB", 1, 0, None),
)


def columns_of(metrics: Iterable[str]) -> list[Column]:
    """Those of `COLUMNS` for these metrics; one that is of several sets of rows has a column for each."""
    known = dict.fromkeys(metrics)
    return [
        column.of(metric) for column in COLUMNS for metric in known if metric.partition(_OF_SET)[0] == column.metric
    ]
