"""Ensembles: one network under several sets of trained tensors, and where such sets come from."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bayes_lora.errors import CheckpointFileError, ConfigurationError
from bayes_lora.inference.predictors.predictor import Inputs, NetworkPredictor, Passes
from bayes_lora.inference.storage.checkpoints import SEAL_FILE, require_whole, whole_checkpoints
from bayes_lora.inference.storage.posterior_files import ADAPTER_FILE, DESCRIPTION_FILE, read_whole
from bayes_lora.models import network_logits

State = Mapping[str, Tensor]  # tensors of a network, by the name they have there

_MODEL_FILE = "model.safetensors"  # the Trainer's, of any network but a PEFT model
_SVI_PREFIX = "model.network."  # of the network in the checkpoint of an SVITrainer


@dataclass(frozen=True, eq=False)
class Ensemble(NetworkPredictor):
    """``p(y | x) = 1/M sum_m softmax(f(x; theta_m))``: the network with the tensors of each member in turn.

    A checkpoint ensemble has members from one run (`checkpoint_states`), a deep ensemble from runs that differ in
    their seed. There is one sample for each member, in their order: `num_samples` and `seed` do nothing, since part
    of the members would be another ensemble. Batches do not matter, and the network has its own tensors back
    afterwards, also after an error.

    Cost: M forward passes, and in every batch M copies of the members' tensors to the network's device. Beside the
    network, memory holds the members where they are, on the CPU as a rule, and a copy of the network's own tensors.

    Args:
        network: any network with a task head; everything the members do not hold is shared.
        states: what each member has instead of the network's tensors, as `trainable_state` or `read_state` give it:
            all that is trainable in the network, and the same tensors in every member.

    Raises:
        ConfigurationError: no members, or a tensor that is missing in a member, unknown to the network or of another
            shape there; names the member and the tensor.

    Source: Lakshminarayanan et al. 2017, Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles,
    section 2.4.

    Example:
        >>> ensemble = Ensemble(network, checkpoint_states("run/checkpoints", network))  # doctest: +SKIP
        >>> prediction = ensemble(loader)  # doctest: +SKIP
    """

    network: nn.Module
    states: Sequence[State]

    def __post_init__(self) -> None:
        if not self.states:
            raise ConfigurationError(
                "an ensemble needs at least one member, and has none. Pass states=[trainable_state(network), ...]."
            )
        for index, state in enumerate(self.states):
            require_fit(self.network, state, f"member {index}")
            odd = sorted(self.states[0].keys() ^ state.keys())
            if odd:
                raise ConfigurationError(
                    f"members 0 and {index} hold different tensors: {odd[0]!r} is in one of them only. Read all "
                    "members in the same way, with the network in the same state."
                )

    @contextmanager
    def drawing(self, num_samples: int, seed: int) -> Iterator[Passes]:
        """One of each member, whatever the arguments."""
        with exchanging(self.network, self.states[0].keys()) as put:

            def members(inputs: Inputs) -> Iterator[Tensor]:
                for state in self.states:
                    put(state)
                    yield network_logits(self.network, inputs).unsqueeze(0)

            yield members


def trainable_state(network: nn.Module) -> dict[str, Tensor]:
    """A copy, on the CPU, of every tensor of the network that is trained (requires a gradient).

    Raises:
        ConfigurationError: there is none.

    Example:
        >>> states = []
        >>> for seed in range(5):  # doctest: +SKIP
        ...     network = build_and_train(seed)
        ...     states.append(trainable_state(network))
        >>> prediction = Ensemble(network, states)(loader)  # doctest: +SKIP
    """
    state = {
        name: value.detach().to("cpu", copy=True) for name, value in network.named_parameters() if value.requires_grad
    }
    if not state:
        raise ConfigurationError(
            f"nothing in this {type(network).__name__} requires a gradient, so it does not say what was trained. Load "
            "a PEFT model with PeftModel.from_pretrained(..., is_trainable=True)."
        )
    return state


def read_state(folder: str | Path, network: nn.Module) -> dict[str, Tensor]:
    """The trained tensors in a saved folder, by the names they have in the network, which stays as it is.

    Reads what PEFT's or transformers' save_pretrained, `save_posterior` and the Trainer write: an adapter, a whole
    network, or a checkpoint of either. Of an `SVITrainer`'s checkpoint it is the network at the mean. Checksums are
    checked where the folder has them.

    Args:
        folder: holds adapter_model.safetensors or model.safetensors.
        network: of the same architecture. What it trains is what is read; the rest of the file must then agree with
            it. Where it trains nothing, since it was loaded for inference, the whole file is read.

    Raises:
        CheckpointFileError, PosteriorFileError: no such file there, or a damaged one; a tensor that is missing, unknown
            to the network, of another shape, or frozen in the network with other values; names the tensor.

    Example:
        >>> states = [read_state(f"run-{seed}/adapter", network) for seed in range(5)]  # doctest: +SKIP
    """
    path = _weights_file(Path(folder))
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointFileError(f"{path} cannot be read: {error}. Copy or save it again.") from error
    if path.name == ADAPTER_FILE:
        names = _peft_names(network)
        found = {names.get(name, name): value for name, value in found.items()}
    elif any(name.startswith(_SVI_PREFIX) for name in found):
        found = {name.removeprefix(_SVI_PREFIX): v for name, v in found.items() if name.startswith(_SVI_PREFIX)}
    try:
        require_fit(network, found, str(path))
    except ConfigurationError as error:
        raise CheckpointFileError(str(error)) from error
    own, trained = _tensors(network), _trained(network)
    for name in sorted(found.keys() - trained) if trained else ():
        if not torch.equal(found[name], own[name].detach().to(found[name])):
            raise CheckpointFileError(
                f"{path}: its {name!r} differs from the network's, where it is frozen, so that a member would be only "
                "half of what was trained. Train the same tensors in the network: requires_grad_(True)."
            )
    return {name: value for name, value in found.items() if name in trained or not trained}


def checkpoint_states(folder: str | Path, network: nn.Module) -> list[dict[str, Tensor]]:
    """`read_state` of all whole checkpoints in a training folder, the earliest first: a checkpoint ensemble.

    A checkpoint that was cut short is passed over, as it is by a resumed run. How many there are is the Trainer's
    save_steps and save_total_limit.

    Raises:
        CheckpointFileError: none is whole, or see `read_state`.
    """
    folder = Path(folder)
    whole = whole_checkpoints(folder)
    if not whole:
        raise CheckpointFileError(
            f"{folder} has no whole checkpoint: no checkpoint-* in it has a {SEAL_FILE} "
            "that its files agree with. Give the folder that fit_network(checkpoints=...) or a SealedTrainer wrote."
        )
    return [read_state(path, network) for path in whole]


def require_fit(network: nn.Module, state: State, what: str) -> None:
    """Every tensor of the state is one of the network, of the same shape, and everything it trains is among them.

    Raises:
        ConfigurationError: it is not so; names `what` and the tensor.
    """
    own = _tensors(network)
    for name, value in state.items():
        if name not in own:
            raise ConfigurationError(
                f"{what} has a tensor {name!r}, which this {type(network).__name__} lacks. Build the network as it was "
                "built when that was trained: the same base, adapters and task head."
            )
        if value.shape != own[name].shape:
            raise ConfigurationError(
                f"{what}: its {name!r} has shape {tuple(value.shape)}, and the network's {tuple(own[name].shape)}. "
                "Build the network with the same rank, and as many classes."
            )
    for name in sorted(_trained(network) - state.keys()):
        raise ConfigurationError(
            f"{what} lacks {name!r}, which is trained in the network. Freeze it there if it was not trained: "
            "requires_grad_(False)."
        )


@contextmanager
def exchanging(network: nn.Module, names: Collection[str]) -> Iterator[Callable[[State], None]]:
    """Gives a function that copies a state with these names into the network, which has its own tensors back after.

    In place, so that compiled networks, tied tensors and the Linears of a `BayesianLoRA` see it.
    """
    own = _tensors(network)
    targets = {name: own[name].detach() for name in names}  # aliases that want no gradient
    before = {name: target.clone() for name, target in targets.items()}

    def put(state: State) -> None:
        for name, target in targets.items():
            target.copy_(state[name])
        torch.clear_autocast_cache()  # an autocast around this would go on with the tensors it cast before

    try:
        yield put
    finally:
        put(before)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _trained(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def _peft_names(network: nn.Module) -> dict[str, str]:
    """The name in the network of each name in a PEFT file, which leaves out that of the adapter, among other things."""
    if not isinstance(network, PeftModel):
        return {}
    state = network.state_dict(keep_vars=True)
    name_of = {id(value): name for name, value in state.items()}
    saved = get_peft_model_state_dict(
        network, state_dict=state, adapter_name=network.active_adapter, save_embedding_layers=False
    )
    return {name: name_of[id(value)] for name, value in saved.items() if id(value) in name_of}


def _weights_file(folder: Path) -> Path:
    if (folder / SEAL_FILE).is_file():
        require_whole(folder)
    if (folder / DESCRIPTION_FILE).is_file():
        read_whole(folder)
    for name in (ADAPTER_FILE, _MODEL_FILE):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointFileError(
        f"{folder} has neither {ADAPTER_FILE} nor {_MODEL_FILE}. Give a folder that save_pretrained or the Trainer "
        "wrote, in safetensors and in one file; a .bin is a pickle and is not opened."
    )
