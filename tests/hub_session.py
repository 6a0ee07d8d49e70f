"""What a user does with the hub, in a process whose client talks to the hub it finds in its environment.

    python -m tests.hub_session FOLDER

prints, as one JSON object, what came of each thing it tried.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from huggingface_hub import HfApi

import bayes_lora as bl
from bayes_lora.errors import BayesLoRAError
from bayes_lora.inference import MeanFieldGuide, load_posterior, predict, push_to_hub, save_posterior
from bayes_lora.models import BayesianLoRA
from tests.networks import build_network, make_batch
from tests.posteriors import build_base, build_saved, content, same


def attempt(what: Callable[[], Any]) -> Any:
    """What it returns, or the error of this library."""
    try:
        return what()
    except BayesLoRAError as error:
        return f"{type(error).__name__}: {error}"


def loads_as(folder: Path, name: str, revision: str | None = None) -> Any:
    """Whether the repository holds what the folder does."""
    expected = content(*load_posterior(build_base(), folder))
    return attempt(lambda: same(content(*load_posterior(build_base(), name, revision=revision)), expected))


def mean_by_peft(name: str) -> bool:
    """Whether PEFT alone gives the mean from the hub."""
    network = peft.PeftModel.from_pretrained(build_base(), name).eval()
    with torch.no_grad():
        logits = network(**make_batch()).logits
    model, guide = load_posterior(build_base(), name)
    return torch.equal(logits, predict(model, guide, [make_batch()], at_mean=True).logits[0])


def mean_field_pair() -> tuple[BayesianLoRA, MeanFieldGuide]:
    """A guide of another kind."""
    config = bl.MonteCLoRAConfig(objective="elbo", num_train_examples=20, sample_scale=0.1)
    model = BayesianLoRA(build_network(), config)
    return model, MeanFieldGuide(model)


def main(place: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    first, second = place / "first", place / "second"
    build_saved(first)
    other = save_posterior(*mean_field_pair(), place / "other")
    (first / "notes.txt").write_text("not of the posterior")
    build_saved(second, init_concentration=3.0)
    damaged, unlisted, bare = (Path(shutil.copytree(first, place / name)) for name in ("damaged", "unlisted", "bare"))
    (bare / "README.md").unlink()
    (damaged / "posterior.safetensors").write_bytes(b"")
    (unlisted / "README.md").write_text("---\ntags: one\n---\n")
    found: dict[str, Any] = {
        "pushed": attempt(lambda: push_to_hub(first, "tester/mine", commit_message="The first one")),
        "pushed again": attempt(lambda: push_to_hub(str(first), "mine")),
        "loads as first": loads_as(first, "tester/mine"),
        "pushed another kind": attempt(lambda: push_to_hub(other, "tester/other")),
        "another kind loads": loads_as(other, "tester/other"),
        "mean by PEFT": mean_by_peft("tester/mine"),
    }
    commit = HfApi().model_info("tester/mine").sha
    found["pushed second"] = attempt(lambda: push_to_hub(second, "tester/mine"))
    return {
        **found,
        "its revision loads as first": loads_as(first, "tester/mine", commit),
        "then loads as second": loads_as(second, "tester/mine"),
        "pushed without a card": attempt(lambda: push_to_hub(bare, "tester/bare")),
        "pushed private": attempt(lambda: push_to_hub(first, "tester/hidden", private=True)),
        "private loads": loads_as(first, "tester/hidden"),
        "private again": attempt(lambda: push_to_hub(first, "tester/hidden", private=True)),
        "public made private": attempt(lambda: push_to_hub(first, "tester/mine", private=True)),
        "wrong token": attempt(lambda: push_to_hub(first, "tester/third", token="hf_wrong")),
        "of somebody else": attempt(lambda: push_to_hub(first, "somebody/third")),
        "no name": attempt(lambda: push_to_hub(first, "tester/third/one")),
        "damaged": attempt(lambda: push_to_hub(damaged, "tester/third")),
        "no posterior": attempt(lambda: push_to_hub(place, "tester/third")),
        "bad metadata": attempt(lambda: push_to_hub(unlisted, "tester/fourth")),
        "unknown": attempt(lambda: load_posterior(build_base(), "tester/unknown")),
        "unknown revision": loads_as(first, "tester/mine", "v9"),
        "revision of a folder": attempt(lambda: load_posterior(build_base(), first, revision="v9")),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
