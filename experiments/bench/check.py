"""Whether a bench came out worse than an earlier one."""

from bayes_lora.errors import BenchError, DataError
from bayes_lora.experiments.bench.results import Results

TOLERANCE = 0.10
_MUST_AGREE = {
    "base_model": "Measure with the same --base-model.",
    "threads": "Measure with the same number of threads: set OMP_NUM_THREADS.",
}


def check_against(new: Results, old: Results) -> int:
    """Compare every ratio of this library's that both have, in the same suite, case, contender and quantity.

    Absolute times and bytes are not compared: they are the machine's.

    Returns:
        How many ratios were compared.

    Raises:
        BenchError: some are more than 10 % worse; names each.
        DataError: the two were not measured alike, or have no ratio in common.
    """
    for setting, remedy in _MUST_AGREE.items():
        now, then = new.settings[setting], old.settings[setting]
        if now != then:
            raise DataError(f"the results were measured with {setting}={then!r}, these with {now!r}. {remedy}")
    before = {record.key: record for record in old.records if record.ours}
    pairs = [
        (record, name, ratio.median, before[record.key].ratios[name].median)
        for record in new.records
        if record.key in before
        for name, ratio in record.ratios.items()
        if name in before[record.key].ratios
    ]
    if not pairs:
        raise DataError(
            f"there is nothing to compare: the results have the suites {', '.join(old.suites) or 'none'}, these have "
            f"{', '.join(new.suites) or 'none'}, and no case is in both. Name others with --suite, or drop --quick."
        )
    worse = [
        f"{record.suite}, {record.described_case()}: {record.label}, {record.quantity} against {name}: "
        f"{now:.3f}, before {then:.3f} ({now / then - 1:+.0%})"
        for record, name, now, then in pairs
        if now > then * (1 + TOLERANCE)
    ]
    if worse:
        raise BenchError(
            f"{len(worse)} of {len(pairs)} ratios are more than {TOLERANCE:.0%} worse than before. Measure again on a "
            "quiet machine, with --suite to name these alone, then look for the change that did it:\n"
            + "\n".join(worse)
        )
    return len(pairs)
