"""Saving a posterior beside its PEFT adapter, and loading it again."""

import os
import secrets
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bayes_lora.adapters.placement import require_loaded
from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import BayesLoRAError, ConfigurationError, PosteriorFileError, RunExistsError
from bayes_lora.inference.guides.lora_guide import LoRAGuide, guide_kinds
from bayes_lora.inference.guides.posterior_draw import require_own_guide
from bayes_lora.inference.storage.fingerprint import base_fingerprint
from bayes_lora.inference.storage.hub import find_posterior
from bayes_lora.inference.storage.model_card import CardFacts, label_names_of, write_card
from bayes_lora.inference.storage.peft_folders import (
    active_adapters,
    carried,
    open_adapters,
    require_all,
    rewritten,
    shapes,
    whole_biases,
)
from bayes_lora.inference.storage.posterior_files import (
    ADAPTER_CONFIG_FILE,
    DESCRIPTION_FILE,
    LIKELIHOOD,
    POSTERIOR_FILE,
    SAMPLE_SCALE,
    SavedKind,
    read_whole,
    saved_adapters,
    saved_guide,
    saved_likelihood,
    write_description,
)
from bayes_lora.models import BayesianLoRA, Likelihood
from bayes_lora.models.likelihoods.kinds import likelihood_kinds


def save_posterior(
    model: BayesianLoRA,
    guide: LoRAGuide,
    folder: str | Path,
    *,
    overwrite: bool = False,
    card: CardFacts | None = None,
) -> Path:
    """Write the mean adapter and the posterior into `folder`, whole or not at all.

    The folder is a PEFT adapter folder, which ``PeftModel.from_pretrained`` opens as the mean adapter without this
    library (others that are active with it are in folders of their own names, where PEFT writes them), plus

        posterior.safetensors   the parameters of guide (of MonteCLoRA alpha and v, as logarithms) and likelihood, and
                                epsilon
        bayes_lora.json         schema version, kind of guide, config, adapter order, fingerprint of the base model,
                                checksums
        README.md               a model card for the Hugging Face hub

    Args:
        model: the model.
        guide: its guide, of any kind; see `LoRAGuide`.
        folder: where to.
        overwrite: replace the folder if it exists.
        card: what the card is to say that the model does not know: the task, the metrics and so on.

    Raises:
        RunExistsError: the folder exists and `overwrite` was not said.
        ConfigurationError: a guide that cannot be made again from its files, or of another model.
        PosteriorFileError: the network is no PEFT model, or none of its adapters has PEFT's own name, "default".
    """
    folder, network = Path(folder), model.network
    adapters = active_adapters(model)
    _check_network(model)
    saved = describe_guide(model, guide), describe_likelihood(model.likelihood)
    if folder.exists() and not overwrite:
        raise RunExistsError(f"{folder} exists already. Choose another folder, or pass overwrite=True.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    temporary.mkdir()
    try:
        with whole_biases():
            network.save_pretrained(str(temporary), selected_adapters=adapters)  # type: ignore[operator]
        learned = {**guide.state_dict(), **_of_likelihood(model), SAMPLE_SCALE: model.sample_scale}
        state = {name: value.detach().cpu().contiguous() for name, value in learned.items()}
        save_file(state, temporary / POSTERIOR_FILE)
        changed = rewritten(temporary, adapters, model.sites.names)
        fingerprint = base_fingerprint(network, carried(temporary, adapters), changed)
        write_description(temporary, asdict(model.config), model.sites.names, fingerprint, *saved, adapters)
        write_card(temporary, card or CardFacts(label_names=label_names_of(network)))
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        _put_in_place(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def describe_guide(model: BayesianLoRA, guide: object) -> SavedKind:
    """What a saved posterior says of its guide.

    Raises:
        ConfigurationError: it is of no kind, cannot be described, or is another model's.
    """
    if not isinstance(guide, LoRAGuide) or guide.kind is None:
        raise ConfigurationError(
            f"a posterior is saved with a guide that its files can name, and this {type(guide).__name__} is of no "
            f"such kind; those are {', '.join(guide_kinds())}. Derive it from LoRAGuide and give it a kind; or save "
            "its state_dict() with safetensors, and the network with save_pretrained."
        )
    require_own_guide(model, guide)
    return SavedKind(guide.kind, guide.settings())


def describe_likelihood(likelihood: Likelihood) -> SavedKind:
    """What a saved posterior says of its model's likelihood.

    Raises:
        ConfigurationError: no file of the package of likelihoods defines it, so that it could not be found again.
    """
    if likelihood_kinds().get(likelihood.kind) is not type(likelihood):
        raise ConfigurationError(
            f"a posterior is saved with a likelihood that its files can name, and this {type(likelihood).__name__} is "
            f"none of {', '.join(likelihood_kinds())}. Save the guide's state_dict() with safetensors, and the network "
            "with save_pretrained; or add the likelihood as CONTRIBUTING says."
        )
    return SavedKind(likelihood.kind, likelihood.settings())


def _check_network(model: BayesianLoRA) -> None:
    if not isinstance(model.network, PeftModel):
        raise PosteriorFileError(
            f"the network is a {type(model.network).__name__}, and only a PeftModel can be saved as a PEFT adapter. "
            "Build it with get_peft_model(base_network, LoraConfig(...))."
        )


def _put_in_place(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; one that is there leaves first, and comes back if that fails."""
    old = new.with_name(new.name + "-replaced")
    replacing = folder.exists()
    if replacing:
        folder.replace(old)
    try:
        new.replace(folder)
    except BaseException:
        if replacing:
            old.replace(folder)
        raise
    if replacing:
        shutil.rmtree(old)


def load_posterior(
    base_network: nn.Module, folder: str | Path, *, revision: str | None = None, is_trainable: bool = False
) -> tuple[BayesianLoRA, LoRAGuide]:
    """Open what `save_posterior` wrote on a freshly loaded base network, which it wraps.

    Args:
        base_network: the network that the adapter was trained on, without adapters.
        folder: a folder, or the name of a repository on the Hugging Face hub, "owner/name", which is downloaded.
        revision: branch, tag or commit of that repository; its main branch where not given.
        is_trainable: leave the adapter (and the modules saved with it) trainable, to train mean and posterior further.
            PEFT opens adapters frozen, and then only the guide learns: post hoc.

    Raises:
        PosteriorFileError: a file missing, damaged, edited or of a newer schema, of a kind of guide or likelihood
            that is not known here, or written for another base model.
        AdapterError: weights of the base network have no values, or no longer the layout they were loaded in.
        HubError: there is no such folder, and no such repository that can be read.

    Example:
        >>> model, guide = load_posterior(base_network, "run/posterior")  # doctest: +SKIP
    """
    folder = find_posterior(folder, revision)
    description = read_whole(folder)
    kind, settings = saved_guide(folder / DESCRIPTION_FILE, description)
    likelihood, of_likelihood = saved_likelihood(folder / DESCRIPTION_FILE, description)
    try:
        config = MonteCLoRAConfig(**description["config"])
    except (TypeError, BayesLoRAError) as error:
        raise PosteriorFileError(f"{folder / DESCRIPTION_FILE}: its config cannot be used: {error}") from error
    load_the_base = f"Load the base it was trained on (base_model_name_or_path in {ADAPTER_CONFIG_FILE})."
    adapters = saved_adapters(description)
    changed = rewritten(folder, adapters, description["adapters"])
    # Before the base network is touched.
    require_loaded(base_network)
    if base_fingerprint(base_network, carried(folder, adapters), changed) != description["base_fingerprint"]:
        raise PosteriorFileError(
            f"{folder} was saved for another base model than this {type(base_network).__name__}. {load_the_base} If "
            "it is, either it was in another precision then (4-bit, 8-bit): load it with that quantization; or it has "
            "modules which its checkpoint lacks and which start at random: name them in LoraConfig's modules_to_save "
            "when training."
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)  # an error below
            network = open_adapters(base_network, folder, adapters, is_trainable=is_trainable)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise PosteriorFileError(
            f"{folder}: its adapter does not fit this {type(base_network).__name__}: {error}. {load_the_base}"
        ) from error
    require_all(folder, network, adapters)
    try:
        model = BayesianLoRA(network, config, likelihood.from_settings(network, of_likelihood))
    except (TypeError, ConfigurationError) as error:
        raise PosteriorFileError(
            f"{folder / DESCRIPTION_FILE}: its {likelihood.__name__} cannot be made again: {error}"
        ) from error
    if list(model.sites.names) != description["adapters"]:
        raise PosteriorFileError(
            f"{folder}: its posterior is of adapters {description['adapters']}, but the network has "
            f"{list(model.sites.names)}. The folder mixes files of two runs."
        )
    try:
        of_model = {name: tuple(value.shape) for name, value in _of_likelihood(model).items()}
        _check_shapes(folder, {**kind.expected_shapes(model, settings), **of_model}, len(model.sites.adapters))
        guide = kind.from_settings(model, settings)
    except (TypeError, ConfigurationError) as error:
        raise PosteriorFileError(
            f"{folder / DESCRIPTION_FILE}: its {kind.__name__} cannot be made again: {error}"
        ) from error
    try:
        state = load_file(folder / POSTERIOR_FILE)
        model.set_sample_scale(state.pop(SAMPLE_SCALE))
        own = {name: state.pop(name) for name in _of_likelihood(model)}
        model.likelihood.load_state_dict({name.removeprefix(LIKELIHOOD): value for name, value in own.items()})
        guide.load_state_dict(state)
    except (RuntimeError, BayesLoRAError) as error:
        raise PosteriorFileError(f"{folder / POSTERIOR_FILE} does not fit the adapters: {error}") from error
    return model.eval(), guide


def _of_likelihood(model: BayesianLoRA) -> dict[str, Tensor]:
    """The likelihood's tensors, by their names in the posterior file."""
    return {LIKELIHOOD + name: value for name, value in model.likelihood.state_dict().items()}


def _check_shapes(folder: Path, learned: Mapping[str, tuple[int, ...]], num_adapters: int) -> None:
    """Before anything as large as the config, the settings or the file say is made."""
    expected = {SAMPLE_SCALE: (num_adapters,), **learned}
    found = shapes(folder / POSTERIOR_FILE)
    if found != expected:
        raise PosteriorFileError(
            f"{folder / POSTERIOR_FILE} does not fit the adapters: it holds {found}, they need {expected}. The folder "
            "mixes files of two runs."
        )
