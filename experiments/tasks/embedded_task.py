"""The demo's own task: sentence pairs made from templates, whose true p(y | x) is known.

Real data sets give labels, not probabilities, so on them calibration can only be judged in bins. Here each pair either
rewords one event or tells two different ones, and the label is drawn with a noise rate that the topic sets:

    true_prob = 1 - noise(group) if sentence2 rewords sentence1 else noise(group),    label ~ Bernoulli(true_prob)

A method that is right about the label noise therefore predicts `true_prob`, and one that knows what it does not know is
less certain on the out-of-distribution rows: other topics, other words, other templates.
"""

import random
from dataclasses import dataclass, replace
from typing import Any

from bayes_lora.errors import ConfigurationError
from bayes_lora.experiments.rows.rows import Row
from bayes_lora.experiments.tasks.tasks import Task, TaskRows

# A concept is the list of its wordings. Wordings of one concept mean the same, those of two concepts never do: the
# clean rule rests on that. A verb's wording is "base/past", the past form being its participle too.
Concept = tuple[str, ...]


def _concepts(text: str) -> tuple[Concept, ...]:
    """Concepts separated by commas, their wordings by bars."""
    return tuple(tuple(wording.strip() for wording in concept.split("|")) for concept in text.split(","))


@dataclass(frozen=True)
class _Topic:
    """Words of one topic; every verb of `deeds` goes with every one of `things`."""

    people: tuple[Concept, ...]
    things: tuple[Concept, ...]
    deeds: tuple[Concept, ...]


@dataclass(frozen=True)
class _Domain:
    """Topics that share templates, times, and the verbs that people do to people."""

    topics: dict[str, _Topic]
    dealings: tuple[Concept, ...]
    times: tuple[Concept, ...]
    active: tuple[str, ...]
    passive: tuple[str, ...]
    active_verb: tuple[str, str]  # affirmative, negated
    passive_verb: tuple[str, str]  # affirmative, negated


_TRAINING = _Domain(
    topics={
        "kitchen": _Topic(
            _concepts("waiter|server, chef|head cook, baker|pastry maker, diner|restaurant guest, dishwasher"),
            _concepts("soup|broth, cake|gateau, steak|sirloin, pie|tart, stew|casserole, pizza"),
            _concepts(
                "prepare/prepared|make/made, order/ordered|request/requested, taste/tasted|sample/sampled, "
                "ruin/ruined|spoil/spoiled, discard/discarded|scrap/scrapped"
            ),
        ),
        "hospital": _Topic(
            _concepts("surgeon, nurse, patient, paramedic|ambulance medic, pharmacist|druggist, physician|doctor"),
            _concepts("prescription, bandage|dressing, medicine|medication, syringe|needle, wheelchair, stretcher"),
            _concepts(
                "check/checked|examine/examined, lose/lost|misplace/misplaced, deliver/delivered|bring/brought, "
                "reject/rejected|refuse/refused, label/labelled|tag/tagged"
            ),
        ),
        "football": _Topic(
            _concepts("goalkeeper|goalie, referee|umpire, striker|forward, coach|trainer, captain|skipper, defender"),
            _concepts("trophy|cup, jersey|shirt, medal, banner|flag, whistle, ball|football"),
            _concepts(
                "find/found|discover/discovered, buy/bought|purchase/purchased, sell/sold, "
                "clean/cleaned|wash/washed, damage/damaged"
            ),
        ),
        "court": _Topic(
            _concepts("judge|magistrate, lawyer|attorney, witness|bystander, juror, detective|investigator, clerk"),
            _concepts("document|paper, letter, photograph|picture, recording|tape, contract|agreement, map|chart"),
            _concepts(
                "read/read, copy/copied|duplicate/duplicated, destroy/destroyed, "
                "present/presented|submit/submitted, forge/forged|fake/faked"
            ),
        ),
    },
    dealings=_concepts(
        "help/helped|assist/assisted, thank/thanked, phone/phoned|call/called, warn/warned|alert/alerted, "
        "praise/praised|commend/commended, insult/insulted|offend/offended"
    ),
    times=_concepts(
        "on Monday, last night|yesterday evening, at noon|at midday, two weeks ago|a fortnight ago, "
        "in the autumn|in the fall, on Friday"
    ),
    active=(
        "{agent} {verb} {object} {time}.",
        "{time}, {agent} {verb} {object}.",
        "It was {agent} who {verb} {object} {time}.",
    ),
    passive=("{object} {verb} by {agent} {time}.", "{time}, {object} {verb} by {agent}."),
    active_verb=("{past}", "did not {base}"),
    passive_verb=("was {past}", "was not {past}"),
)

_UNSEEN = _Domain(
    topics={
        "farm": _Topic(
            _concepts("farmer|grower, shepherd, vet|veterinarian, beekeeper|apiarist, gardener, miller"),
            _concepts("tractor, barn, fence, plough|plow, orchard, haystack|stack of hay"),
            _concepts("paint/painted, rent/rented|lease/leased, inherit/inherited, abandon/abandoned, insure/insured"),
        ),
        "harbour": _Topic(
            _concepts("sailor|seaman, diver, fisherman|angler, lighthouse keeper, smuggler, shipwright"),
            _concepts("boat|vessel, anchor, compass, lantern|lamp, telescope|spyglass, net"),
            _concepts("repair/repaired|mend/mended, borrow/borrowed, bury/buried, polish/polished, hoist/hoisted"),
        ),
    },
    dealings=_concepts(
        "rescue/rescued|save/saved, visit/visited, admire/admired, follow/followed|trail/trailed, "
        "ignore/ignored, invite/invited"
    ),
    times=_concepts("at dawn|at sunrise, before the storm, one winter, after the wedding, in July"),
    active=(
        "{agent} is the one that {verb} {object} {time}.",
        "{agent}, we hear, {verb} {object} {time}.",
        "They say that {time} {agent} {verb} {object}.",
    ),
    passive=(
        "Rumour has it that {object} {verb} by {agent} {time}.",
        "{object}, so they say, {verb} by {agent} {time}.",
    ),
    active_verb=("{past}", "never {past}"),
    passive_verb=("got {past}", "never got {past}"),
)

# Noise rates of the topics seen in training; the unseen ones follow the rule without noise.
NOISE_RATES: dict[str, float] = {"kitchen": 0.02, "hospital": 0.10, "football": 0.20, "court": 0.35}

EMBEDDED = Task("embedded", ("sentence1", "sentence2"), "label", ("different", "paraphrase"), max_length=64)


@dataclass(frozen=True)
class EmbeddedTask:
    """Rows of the embedded task.

    Each row holds sentence1, sentence2, label (0 or 1), group (the topic), and true_prob (the probability that the
    label is 1, given the pair).

    Attributes:
        rows: the task with its train and validation rows, as `load_task` gives them.
        out_of_distribution: rows of topics, words and templates that no training row has. Their labels follow the
            clean rule: noise 0, so true_prob is 0.0 or 1.0 (the rule's truth, not what a model could know).
        noise_rates: the noise rate of each group, the unseen ones included.
    """

    rows: TaskRows
    out_of_distribution: list[Row]
    noise_rates: dict[str, float]


@dataclass(frozen=True)
class _Event:
    """Who did what to whom (or what), when, or that it did not happen."""

    agent: Concept
    deed: Concept
    target: Concept
    time: Concept | None
    negated: bool


# How often each concept is worded anew in the second sentence. Rewordings replace more words than other events do,
# so that counting shared words does not give the answer away.
_NEW_WORD_RATE = {True: 0.6, False: 0.2}

# Of the pairs that tell two events, how many keep every word and only swap the roles or turn the negation: hard ones.
_SAME_WORDS_RATE = 0.08


@dataclass(frozen=True)
class _Writer:
    """Writes pairs about the topics of one domain, every choice drawn from `rng`."""

    domain: _Domain
    rng: random.Random

    def pair(self, topic: _Topic, paraphrase: bool) -> tuple[str, str]:
        """Two different sentences: of one event, or of two."""
        rng, domain = self.rng, self.domain
        between_people = rng.random() < 0.4
        agent, other = rng.sample(topic.people, 2)
        event = _Event(
            agent=agent,
            deed=rng.choice(domain.dealings if between_people else topic.deeds),
            target=other if between_people else rng.choice(topic.things),
            time=rng.choice(domain.times) if rng.random() < 0.5 else None,
            negated=rng.random() < 0.15,
        )
        second = event if paraphrase else self._another(event, topic, between_people)
        wording = {concept: rng.choice(concept) for concept in (*_concepts_of(event), *_concepts_of(second))}
        rewording = {
            concept: self._another_word(concept, word) if rng.random() < _NEW_WORD_RATE[paraphrase] else word
            for concept, word in wording.items()
        }
        template = self._template()
        return self._render(event, wording, template), self._render(second, rewording, self._template(template))

    def _another(self, event: _Event, topic: _Topic, between_people: bool) -> _Event:
        """An event that differs in its roles or its negation only, or else in two or three of its parts."""
        if self.rng.random() < _SAME_WORDS_RATE:
            if between_people and self.rng.random() < 0.5:
                return replace(event, agent=event.target, target=event.agent)
            return replace(event, negated=not event.negated)
        choices = {
            "agent": topic.people,
            "deed": self.domain.dealings if between_people else topic.deeds,
            "target": topic.people if between_people else topic.things,
        }
        if event.time:
            choices["time"] = self.domain.times
        taken = _concepts_of(event)
        changed: dict[str, Any] = {}
        for part in self.rng.sample(list(choices), self.rng.choice((2, 3))):
            free = [concept for concept in choices[part] if concept not in taken and concept not in changed.values()]
            changed[part] = self.rng.choice(free)
        return replace(event, **changed)

    def _another_word(self, concept: Concept, word: str) -> str:
        return self.rng.choice([other for other in concept if other != word] or [word])

    def _template(self, unlike: str | None = None) -> str:
        templates = self.domain.active + self.domain.passive
        return self.rng.choice([template for template in templates if template != unlike])

    def _render(self, event: _Event, wording: dict[Concept, str], template: str) -> str:
        base, past = wording[event.deed].split("/")
        forms = self.domain.passive_verb if template in self.domain.passive else self.domain.active_verb
        sentence = template.format(
            agent=f"the {wording[event.agent]}",
            verb=forms[event.negated].format(base=base, past=past),
            object=f"the {wording[event.target]}",
            time=wording[event.time] if event.time else "",
        )
        # Without a time, its place in the template is empty.
        sentence = sentence.removeprefix(", ").replace(" .", ".").replace("  ", " ")
        return sentence[0].upper() + sentence[1:]


def _concepts_of(event: _Event) -> list[Concept]:
    return [event.agent, event.deed, event.target, *([event.time] if event.time else [])]


def _make_rows(
    domain: _Domain, noise_rates: dict[str, float], count: int, rng: random.Random, seen: set[frozenset[str]]
) -> list[Row]:
    """`count` rows, topics in turn, half of them rewordings on average; pairs in `seen` do not come again."""
    writer = _Writer(domain, rng)
    names = list(domain.topics)
    rows: list[Row] = []
    for number in range(count):
        group = names[number % len(names)]
        paraphrase = rng.random() < 0.5
        pair = frozenset[str]()
        while len(pair) < 2 or pair in seen:  # one element: the second sentence came out as the first
            first, second = writer.pair(domain.topics[group], paraphrase)
            pair = frozenset((first, second))
        seen.add(pair)
        true_prob = 1.0 - noise_rates[group] if paraphrase else noise_rates[group]
        label = int(rng.random() < true_prob)
        rows.append({"sentence1": first, "sentence2": second, "label": label, "group": group, "true_prob": true_prob})
    rng.shuffle(rows)
    return rows


def make_embedded_task(
    *, num_train: int = 2000, num_validation: int = 500, num_out_of_distribution: int = 500, seed: int = 0
) -> EmbeddedTask:
    """The embedded task, the same for the same arguments; no pair occurs twice, in one split or in two.

    Args:
        num_train: training rows, spread evenly over the four topics.
        num_validation: validation rows, drawn as the training rows are.
        num_out_of_distribution: rows of the two unseen topics.
        seed: of the words, the events and the label noise.

    Raises:
        ConfigurationError: a number of rows outside 1 to 20,000, which the templates can fill many times over.
    """
    sizes = {"num_train": num_train, "num_validation": num_validation}
    for name, count in (sizes | {"num_out_of_distribution": num_out_of_distribution}).items():
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 20_000:
            raise ConfigurationError(f"{name}={count!r} must be an integer from 1 to 20000.")
    rng = random.Random(seed)
    seen: set[frozenset[str]] = set()
    train = _make_rows(_TRAINING, NOISE_RATES, num_train, rng, seen)
    validation = _make_rows(_TRAINING, NOISE_RATES, num_validation, rng, seen)
    unseen_rates = dict.fromkeys(_UNSEEN.topics, 0.0)
    out_of_distribution = _make_rows(_UNSEEN, unseen_rates, num_out_of_distribution, rng, seen)
    return EmbeddedTask(TaskRows(EMBEDDED, train, validation), out_of_distribution, NOISE_RATES | unseen_rates)
