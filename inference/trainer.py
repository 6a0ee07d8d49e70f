"""Training under the transformers Trainer: its loss is the ELBO of model and guide."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, TrainingArguments

from bayes_lora.checks import require_count, require_positive
from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.callbacks import MoveScale, OwnDraws
from bayes_lora.inference.guide import MonteCLoRAGuide
from bayes_lora.inference.hub import push_to_hub
from bayes_lora.inference.ledger import Ledger
from bayes_lora.inference.metrics import evaluate
from bayes_lora.inference.model_card import CardFacts, label_names_of, write_card
from bayes_lora.inference.posterior_files import DESCRIPTION_FILE
from bayes_lora.inference.predictive import predict
from bayes_lora.inference.scale_schedule import SampleScaleSchedule
from bayes_lora.inference.sealed_trainer import SealedTrainer
from bayes_lora.inference.storage import save_posterior
from bayes_lora.inference.svi_module import SVIModule
from bayes_lora.models import BayesianLoRA


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
        self.add_callback(OwnDraws())
        if scale_schedule is not None:
            self.add_callback(MoveScale(self.svi))
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

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what `save_posterior` writes, and the tokenizer, beside what else is in the folder.

        By default the folder is `args.output_dir`. The Trainer's own checkpoints hold what it needs to go on instead.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call)
            return
        if self.args.should_save:
            self._write_posterior(Path(output_dir or str(self.args.output_dir)))
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """Save, and put the posterior on the hub as `args.hub_model_id`, with a card that has the last metrics.

        Args:
            commit_message: what the commit says.
            blocking: must be True: it returns when the files are there.
            token: by default `args.hub_token`, or the login.
            revision: must be None: the main branch.
            private: make a new repository private; by default `args.hub_private_repo`.
            card: `language` and `license`; others of the Trainer's card are of no use here.

        Raises:
            HubError, ConfigurationError: see `bayes_lora.inference.push_to_hub`.
        """
        if not blocking or revision is not None:
            raise ConfigurationError(
                "push_to_hub of an SVITrainer writes to the main branch and waits for it. Drop blocking and revision."
            )
        folder = Path(str(self.args.output_dir))
        if not self.is_world_process_zero():
            return None
        self._write_posterior(folder)
        self.create_model_card(language=card.get("language"), license=card.get("license"))
        repository = self.args.hub_model_id or folder.resolve().name
        return push_to_hub(
            folder,
            repository,
            private=bool(self.args.hub_private_repo if private is None else private),
            token=token or self.args.hub_token,
            commit_message=commit_message or "End of training",
        )

    def create_model_card(
        self, language: str | None = None, license: str | None = None, *others: Any, **more: Any
    ) -> None:
        """Write the posterior's model card, with the metrics of the last evaluation, into `args.output_dir`."""
        folder = Path(str(self.args.output_dir))
        if not self.is_world_process_zero():
            return
        if not (folder / DESCRIPTION_FILE).is_file():
            self._write_posterior(folder)
        evaluations = [logs for logs in self.state.log_history if "eval_nll" in logs]
        last = evaluations[-1] if evaluations else {}
        known = [name for name in ("accuracy", "nll", "ece", "brier") if f"eval_{name}" in last]
        facts = CardFacts(
            label_names=label_names_of(self.svi.model.network),
            predictive_metrics={name: last[f"eval_{name}"] for name in known},
            point_metrics={name: last[f"eval_point_{name}"] for name in known},
            num_samples=self.num_samples,
            language=language,
            license=license,
        )
        write_card(folder, facts)

    def _write_posterior(self, folder: Path) -> None:
        guide = self.svi.guide
        if not isinstance(guide, MonteCLoRAGuide):
            raise ConfigurationError(
                f"a posterior is saved with a MonteCLoRAGuide, and this guide is a {type(guide).__name__}. Save its "
                "state_dict() with safetensors instead, and the network with save_pretrained."
            )
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".posterior-") as scratch:
            written = save_posterior(self.svi.model, guide, Path(scratch) / "posterior")
            # The description last: beside files of another save it would not fit their checksums.
            for path in sorted(written.iterdir(), key=lambda path: path.name == DESCRIPTION_FILE):
                path.replace(folder / path.name)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

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
