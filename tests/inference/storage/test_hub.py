"""The hub: what is pushed comes back bit for bit, and what goes wrong is said with what to type next."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bayes_lora.errors import BayesLoRAError, HubError
from bayes_lora.inference import load_posterior, push_to_hub
from tests.hub_server import Hub, serve
from tests.posteriors import FILES, build_base, build_saved, content, same

ROOT = Path(__file__).parents[3]
Session = tuple[dict[str, Any], Hub, Path]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """What came of `tests.hub_session`, the hub it talked to, and its folder."""
    place = tmp_path_factory.mktemp("session")
    with serve() as hub:
        command = [sys.executable, "-W", "ignore", "-m", "tests.hub_session", str(place)]
        environment = {**os.environ, **hub.environment(place / "cache")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), hub, place


def test_what_was_pushed_loads_bit_for_bit(session: Session) -> None:
    found, hub, _ = session
    assert found["pushed"] == found["pushed again"] == f"{hub.endpoint}/tester/mine"
    assert found["loads as first"] is True
    assert found["mean by PEFT"] is True
    assert found["then loads as second"] is True
    assert found["its revision loads as first"] is True


def test_every_kind_of_guide_can_be_pushed(session: Session) -> None:
    found, hub, _ = session
    assert found["pushed another kind"] == f"{hub.endpoint}/tester/other"
    assert found["another kind loads"] is True


def test_a_push_is_one_commit_of_the_posterior_alone(session: Session) -> None:
    _, hub, place = session
    commits = hub.repositories["tester/mine"].commits[1:]
    assert [message for _, message, _ in commits] == [
        "The first one",
        "Upload a posterior over LoRA adapters with bayes_lora",
    ]
    files = commits[0][2]
    assert files.keys() == FILES
    for name in FILES - {"README.md"}:
        assert files[name] == (place / "first" / name).read_bytes()


def test_a_card_that_was_deleted_is_not_made_up(session: Session) -> None:
    found, hub, _ = session
    assert found["pushed without a card"] == f"{hub.endpoint}/tester/bare"
    assert hub.repositories["tester/bare"].commits[-1][2].keys() == FILES - {"README.md"}


def test_an_unchanged_folder_is_no_commit(session: Session) -> None:
    _, hub, _ = session
    assert len(hub.repositories["tester/mine"].commits) == 3
    assert len(hub.repositories["tester/hidden"].commits) == 2


def test_the_card_there_names_the_repository(session: Session) -> None:
    _, hub, place = session
    card = hub.repositories["tester/mine"].commits[-1][2]["README.md"].decode()
    assert card.count('"tester/mine"') == 2
    local = (place / "second" / "README.md").read_text(encoding="utf-8")
    assert local.count('"path/to/this/folder"') == 2
    assert card == local.replace("path/to/this/folder", "tester/mine")


def test_private_is_private(session: Session) -> None:
    found, hub, _ = session
    assert found["pushed private"] == found["private again"] == f"{hub.endpoint}/tester/hidden"
    assert found["private loads"] is True
    assert hub.repositories["tester/hidden"].private
    assert not hub.repositories["tester/mine"].private
    assert re.match(
        r"HubError: tester/mine exists already and is public, so .* not pushed", found["public made private"]
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("wrong token", r"HubError: .*first could not be pushed to 'tester/third' .*401.* hf auth login\."),
        ("of somebody else", r"HubError: .*could not be pushed to 'somebody/third' .*403.* hf auth login\."),
        ("no name", r"HubError: .*'tester/third/one' \(HFValidationError: .* Correct what it names\."),
        ("damaged", r"PosteriorFileError: .*posterior\.safetensors has 0 bytes where bayes_lora\.json says"),
        ("no posterior", r"PosteriorFileError: .*bayes_lora\.json is missing: .* is not a folder that save_posterior"),
        ("bad metadata", r"HubError: .*Invalid metadata in README\.md.* Correct what it names\."),
        (
            "unknown",
            r"HubError: there is no folder tester/unknown, and 'tester/unknown' could not be down.* Check the n",
        ),
        ("unknown revision", r"HubError: .*RevisionNotFoundError.* Check the name \(and the revision\)"),
        (
            "revision of a folder",
            r"PosteriorFileError: revision='v9' is of a repository on the hub, but .*first is a f",
        ),
    ],
)
def test_what_goes_wrong_is_named(session: Session, what: str, message: str) -> None:
    assert re.match(message, session[0][what], flags=re.DOTALL), session[0][what]


def test_nothing_is_made_for_what_is_refused(session: Session) -> None:
    assert "tester/third" not in session[1].repositories
    assert len(session[1].repositories["tester/fourth"].commits) == 1


def test_without_a_network(tmp_path: Path) -> None:
    build_saved(tmp_path / "run")
    with pytest.raises(HubError, match=r"run could not be pushed to 'me/mine' \(.*offline.*Check the network conn"):
        push_to_hub(tmp_path / "run", "me/mine")
    with pytest.raises(
        HubError, match=r"there is no folder runs/mine, and 'runs/mine' could not be downloaded"
    ) as caught:
        load_posterior(build_base(), "runs/mine")
    assert isinstance(caught.value, BayesLoRAError)
    assert isinstance(caught.value, OSError)


def test_a_folder_comes_before_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = content(*build_saved(Path("runs/mine")))
    assert same(content(*load_posterior(build_base(), "runs/mine")), expected)


def test_a_trainer_pushes_posteriors(tmp_path: Path) -> None:
    with serve() as hub:
        command = [sys.executable, "-W", "ignore", "-m", "tests.trainer_push_run", str(tmp_path / "run")]
        environment = {**os.environ, **hub.environment(tmp_path / "cache")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) is True
    repository = hub.repositories["tester/trained"]
    messages = [message for _, message, _ in repository.commits[1:]]
    assert messages == ["Training in progress, step 2", "Training in progress, step 4", "End of training"]
    _, files = repository.files("main")  # type: ignore[misc]
    assert set(files) == FILES | {"README.md"}
    card = files["README.md"].decode()
    assert "GLUE MRPC" in card
    assert "language: en" in card
