"""Training under the transformers Trainer: its loss is the ELBO of model and guide."""

import inspect
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerCallback, TrainingArguments

from bayes_lora.checks import require_count, require_positive
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.ledger import Ledger
from bayes_lora.inference.metrics import evaluate
from bayes_lora.inference.objective import ItemizedELBO
from bayes_lora.inference.predictive import predict
from bayes_lora.inference.randomness import stream
from bayes_lora.inference.scale_schedule import SampleScaleSchedule
from bayes_lora.inference.sealed_trainer import SealedTrainer
from bayes_lora.models import BayesianLoRA


class SVIModule(nn.Module):
    """Model and guide as one module, so that DDP, checkpoints and optimizers see the parameters of both.

    Called with a batch it returns ``{"loss": the objective}``. The terms of the last loss are in `elbo.terms`.
    """

    # Else the Trainer takes the loss as summed over the batches of a step, and does not divide it by their number.
    accepts_loss_kwargs = False
    _keys_to_ignore_on_save = None

    def __init__(self, model: BayesianLoRA, guide: nn.Module, schedule: SampleScaleSchedule | None = None) -> None:
        super().__init__()
        self.model = model
        self.guide = guide
        self.schedule = schedule
        self.elbo = ItemizedELBO()

    @property
    def config(self) -> Any:
        """The base model's configuration, which the Trainer and its reports look at."""
        return getattr(self.model.network, "config", None)

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        schedule = self.schedule if self.training else None
        if schedule is None:
            return {"loss": self.elbo.differentiable_loss(self.model, self.guide, **batch)}
        seen: list[Tensor] = []

        def watched(**batch: Any) -> Tensor:
            seen.append(self.model(**batch))
            return seen[-1]

        loss = self.elbo.differentiable_loss(watched, self.guide, **batch)
        schedule.observe(seen[-1], self.elbo.terms["nll"])
        return {"loss": loss}

    def get_input_embeddings(self) -> nn.Module:
        """Those of the network."""
        return self.model.network.get_input_embeddings()  # type: ignore[operator,no-any-return]

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Passed on to the network."""
        self.model.network.activation_checkpointing_enable(**options)  # type: ignore[operator]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """What is trained: the frozen base stays where it came from."""
        state = super().state_dict(*args, **kwargs)
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        prefix = kwargs.get("prefix", "")
        return type(state)((name, value) for name, value in state.items() if name.removeprefix(prefix) not in frozen)


class SVITrainer(SealedTrainer):
    """`transformers.Trainer` whose loss is the Pyro ELBO of model and guide.

    Everything else is the Trainer's: schedulers, callbacks, accumulation, clipping, checkpoints, reports. It logs the
    loss terms beside the loss, each the mean over the steps since the last log, and evaluates the posterior
    predictive (accuracy, nll, ece, brier) and the point estimate (the same with `point_` before). `predict`, and a
    `compute_metrics` of your own, see the posterior predictive's log probabilities where other models give logits.

    Args:
        model: the Pyro model.
        guide: its guide.
        args: TrainingArguments; `learning_rate` is that of the network's parameters.
        posterior_learning_rate: peak learning rate of the guide's parameters, which have no weight decay.
        num_samples: posterior draws of an evaluation, seeded with `args.seed`.
        scale_schedule: moves the model's `sample_scale` during training; None leaves it alone.
        compute_metrics: more metrics, of an EvalPrediction as any Trainer gives it.
        kwargs: the Trainer's own: data_collator, train_dataset, eval_dataset, callbacks and so on.

    Raises:
        NonFiniteLossError: when a log finds that a term of the loss has become NaN or infinite.
        ConfigurationError: an option of the Trainer under which the loss would not be the objective: sharding (FSDP,
            DeepSpeed), several GPUs in one process, label smoothing, a loss function of your own.

    Example:
        >>> trainer = SVITrainer(model, guide, TrainingArguments("out"), train_dataset=data)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: BayesianLoRA,
        guide: nn.Module,
        args: TrainingArguments | None = None,
        *,
        posterior_learning_rate: float = 1e-2,
        num_samples: int = 16,
        scale_schedule: SampleScaleSchedule | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        require_positive("posterior_learning_rate", posterior_learning_rate)
        require_count("num_samples", num_samples)
        _refuse_unsupported(args, kwargs)
        self.posterior_learning_rate = posterior_learning_rate
        self.num_samples = num_samples
        self.svi = SVIModule(model, guide, scale_schedule)
        self._ledger = Ledger()
        self._more_metrics = compute_metrics
        super().__init__(self.svi, args, compute_metrics=self._metrics, **kwargs)
        self.add_callback(_OwnDraws())
        if scale_schedule is not None:
            self.add_callback(_MoveScale(self.svi))
        if self.args.n_gpu > 1:
            raise ConfigurationError(
                f"{self.args.n_gpu} GPUs in one process would run copies of the network that do not see the noise. "
                "Start one process per GPU (torchrun or accelerate launch), or set CUDA_VISIBLE_DEVICES to one."
            )
        # Both are read from the forward signature of the module it was given, which takes any batch.
        if self.args.label_names is None:
            self.label_names = ["labels"]
        accepted = inspect.signature(_base(model).forward).parameters
        self._signature_columns: Any = [*accepted, "label", "label_ids", "labels"]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with the guide's parameters in a group of their own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        posterior = [parameter for parameter in self.svi.guide.parameters() if parameter.requires_grad]
        known = {id(parameter) for parameter in posterior}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
        if posterior:
            optimizer.add_param_group({"params": posterior, "lr": self.posterior_learning_rate, "weight_decay": 0.0})
        return optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The objective on one batch; its terms go into the next log."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            self._ledger.add(self.state.global_step + 1, self.svi.elbo.terms)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the loss terms where the loss is logged."""
        if "loss" in logs:
            terms = self._ledger.close()
            terms.pop("loss")
            logs = {**logs, **terms}
        super().log(logs, start_time)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; `predictions` are log probabilities of the posterior predictive (example, class)."""
        output = super().predict(*args, **kwargs)
        return output._replace(predictions=output.predictions[0])

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        more = {}
        if self._more_metrics is not None:
            more = self._more_metrics(EvalPrediction(prediction.predictions[0], prediction.label_ids))
        return {**predictive_metrics(prediction), **more}

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # Checkpoints hold what is trained; the frozen base is missing there by design.
        trained = {name for name, parameter in self.svi.named_parameters() if parameter.requires_grad}
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name in trained]
        super()._issue_warnings_after_load(load_result)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """(NLL of the posterior predictive, (its log probabilities, the point estimate's), labels) of one batch."""
        inputs = self._prepare_inputs(inputs)
        pair = self.svi.model, self.svi.guide
        seed = self.args.seed
        predictive = predict(*pair, [inputs], num_samples=self.num_samples, seed=seed).log_mean_probs
        point = predict(*pair, [inputs], at_mean=True).log_mean_probs
        labels = inputs.get("labels")
        loss = None
        if labels is not None:
            labels = labels.reshape(-1)
            loss = nn.functional.nll_loss(predictive, labels.cpu()).to(labels.device)
        if prediction_loss_only:
            return loss, None, None
        return loss, (predictive.to(self.args.device), point.to(self.args.device)), labels


class _OwnDraws(TrainerCallback):
    """Gives each process posterior draws of its own.

    The Trainer seeds all processes alike; with the same draws everywhere, more processes would not make the gradient
    any less noisy. The generators of a resumed run are loaded after this.
    """

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size > 1:
            torch.manual_seed(stream(args.seed, args.process_index))


class _MoveScale(TrainerCallback):
    """Sets the sample scale before every step; with the last one the schedule is complete."""

    def __init__(self, svi: SVIModule) -> None:
        self._svi = svi

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        assert self._svi.schedule is not None
        self._svi.schedule.apply_to(self._svi.model, (state.global_step + 1) / state.max_steps)


def _refuse_unsupported(args: TrainingArguments | None, given: dict[str, Any]) -> None:
    """Raise for what would train something else than the objective, or nothing."""
    sharded = {
        "FSDP": getattr(args, "fsdp", None) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true",
        "DeepSpeed": getattr(args, "deepspeed", None)
        or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true",
    }
    for name, found in sharded.items():
        if found:
            raise ConfigurationError(
                f"{name} is not supported: it keeps a part of each weight on each process, while noise is added to "
                "whole LoRA-A matrices, and the ELBO reads them outside the network's forward pass. Use one process "
                f"per GPU without {name} (torchrun or accelerate launch), with a 4-bit base if it is too large."
            )
    if getattr(args, "label_smoothing_factor", 0.0) != 0:
        raise ConfigurationError(
            "label_smoothing_factor changes the loss outside the model, which would no longer be the ELBO. Drop it."
        )
    if given.get("compute_loss_func") is not None:
        raise ConfigurationError(
            "compute_loss_func would replace the ELBO. Pass a likelihood of your own to BayesianLoRA instead."
        )


def predictive_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of what `SVITrainer.prediction_step` returns: of the predictive, and with `point_` of the mean."""
    predictive, point = (torch.from_numpy(np.asarray(values)).exp() for values in prediction.predictions)
    labels = torch.from_numpy(np.asarray(prediction.label_ids))
    return {
        **evaluate(predictive, labels),
        **{f"point_{name}": value for name, value in evaluate(point, labels).items()},
    }


def _base(model: BayesianLoRA) -> Any:
    network: Any = model.network
    return network.get_base_model() if hasattr(network, "get_base_model") else network
