"""Training under the transformers Trainer: its loss is the ELBO of model and guide."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from transformers import EvalPrediction, TrainingArguments

from bayes_lora.checks import require_choice, require_positive
from bayes_lora.choices import Draws, Phase
from bayes_lora.errors import ConfigurationError
from bayes_lora.gradients import frozen
from bayes_lora.inference.predictors.posterior_passes import PosteriorPasses
from bayes_lora.inference.predictors.predictor import collect_logits
from bayes_lora.inference.training.callbacks import MoveScale, OwnDraws
from bayes_lora.inference.training.loss_log import LossLog
from bayes_lora.inference.training.own_groups import give_own_group
from bayes_lora.inference.training.refused_options import refuse_unsupported
from bayes_lora.inference.training.saving_trainer import SavingTrainer
from bayes_lora.inference.training.scale_schedule import SampleScaleSchedule
from bayes_lora.inference.training.step_weights import StepWeights
from bayes_lora.inference.training.svi_module import SVIModule
from bayes_lora.inference.training.trainable import require_all_in, require_trainable_adapters
from bayes_lora.inference.training.training_rows import count_training_rows
from bayes_lora.models import BayesianLoRA, Likelihood


class SVITrainer(SavingTrainer):
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
        likelihood_learning_rate: the same of the likelihood's parameters, where it has some.
        head_learning_rate, weight_decay_of: see `FitOptions`.
        phase: "joint" trains network and guide; "posterior" the guide alone, around the network as it is (post hoc).
        num_samples: posterior draws of an evaluation, seeded with `args.seed`; or "auto".
        draws: how they belong together, see `predict`.
        scale_schedule: moves the model's `sample_scale` during training; None leaves it alone.
        compute_metrics: more metrics, of an EvalPrediction as any Trainer gives it.
        kwargs: `SealedTrainer`'s and the Trainer's: data_collator, train_dataset, eval_dataset, callbacks and so on.

    Raises:
        NonFiniteLossError: when a log finds that a term of the loss has become NaN or infinite.
        ConfigurationError: from `train`, where the configuration's `num_train_examples` is not the number of training
            rows; where it is None it is set to that. Or phase="joint" and the adapters are frozen, or an optimizer was
            given that lacks a trainable tensor.
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
        likelihood_learning_rate: float = 5e-2,
        phase: Phase = "joint",
        num_samples: int | Literal["auto"] = 16,
        draws: Draws | None = None,
        scale_schedule: SampleScaleSchedule | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        require_positive("posterior_learning_rate", posterior_learning_rate)
        require_positive("likelihood_learning_rate", likelihood_learning_rate)
        require_choice("phase", phase, get_args(Phase))
        refuse_unsupported(args, kwargs)
        self.posterior_learning_rate, self.likelihood_learning_rate = posterior_learning_rate, likelihood_learning_rate
        self.phase = phase
        self.num_samples, self.draws = num_samples, draws
        self.svi = SVIModule(model, guide, scale_schedule)
        self._loss_log = LossLog()
        self._passes: PosteriorPasses | None = None  # during an evaluation
        self._weights = StepWeights(model.likelihood)
        self._more_metrics = compute_metrics
        super().__init__(self.svi, args, compute_metrics=self._metrics, **kwargs)
        self.add_callback(OwnDraws())
        self._new_passes()  # for its checks
        if scale_schedule is not None:
            self.add_callback(MoveScale(self.svi))
        if self.args.n_gpu > 1:
            raise ConfigurationError(
                f"{self.args.n_gpu} GPUs in one process would run copies of the network that do not see the noise. "
                "Start one process per GPU (torchrun or accelerate launch), or set CUDA_VISIBLE_DEVICES to one."
            )
        if self.args.label_names is None:  # else read from the forward signature of the module
            self.label_names = ["labels"]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, after the training rows have been counted."""
        if self.train_dataset is not None:  # else the Trainer says that there is none
            count_training_rows(self.svi.model, self.train_dataset)
        model, guide = self.svi.model, self.svi.guide
        if self.phase == "joint":
            require_trainable_adapters(model)
        with frozen(model.network) if self.phase == "posterior" else nullcontext():
            if self.optimizer is not None:
                parts = {"network": model.network, "model.likelihood": model.likelihood, "guide": guide}
                require_all_in(self.optimizer, parts)
            return super().train(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with the parameters of guide and likelihood in groups of their own."""
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        give_own_group(optimizer, self.svi.guide, self.posterior_learning_rate)
        give_own_group(optimizer, self.svi.model.likelihood, self.likelihood_learning_rate)
        return optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, of one step; it counts for losses that divide by the number themselves, this for all."""
        batches, counted = super().get_batch_samples(*args, **kwargs)
        self._weights.count(self, batches)
        return batches, counted

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The objective on one batch; its terms go into the next log.

        Of a step of several batches the losses are averaged, each with its likelihood weighed by what it observes.
        """
        self.svi.elbo.nll_weight = self._weights.of(inputs) if model.training else 1.0
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            self._loss_log.add(self.state.global_step + 1, self.svi.elbo.terms)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the loss terms where the loss is logged."""
        if "loss" in logs:
            terms = self._loss_log.close()
            terms.pop("loss")
            logs = {**logs, **terms}
        super().log(logs, start_time)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's; `predictions` are log probabilities of the posterior predictive (example, class)."""
        output = super().predict(*args, **kwargs)
        return output._replace(predictions=_of_predictive(output.predictions))

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        more = {}
        if self._more_metrics is not None:
            own = _of_predictive(prediction.predictions)
            more = self._more_metrics(
                EvalPrediction(own, prediction.label_ids, inputs=prediction.inputs, losses=prediction.losses)
            )
        return {**predictive_metrics(self.svi.model.likelihood, prediction), **more}

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, under the same draws for all batches."""
        self._passes = self._new_passes()
        try:
            output = super().evaluation_loop(*args, **kwargs)
        finally:
            self._passes = None
        metrics = output.metrics or {}
        if not self.svi.model.likelihood.counts_rows:  # the Trainer's is the mean over rows of means over batches
            for name in [name for name in metrics if name.endswith("_loss")]:
                metrics[name] = metrics.get(f"{name.removesuffix('loss')}nll", metrics[name])
        return output

    def _new_passes(self) -> PosteriorPasses:
        svi = self.svi
        return PosteriorPasses(svi.model, svi.guide, self.num_samples, self.args.seed, draws=self.draws)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Tensor | None]:
        """(NLL of the posterior predictive, (its log probabilities, the point estimate's), labels) of one batch."""
        inputs, likelihood = self._prepare_inputs(inputs), self.svi.model.likelihood
        passes = self._passes or self._new_passes()
        labels, loss, density = inputs.get("labels"), None, None
        if likelihood.reduces:
            with passes.predicting():
                others = {name: value for name, value in inputs.items() if name != "labels"}
                point, predictive = passes.mean_and_predictive(others, labels)
            density = None if labels is None else predictive.log_density.to(labels.device)
        else:
            with passes.predicting():
                logits, known = collect_logits(passes.mean_and_draws, [inputs], self.svi.model.sites.example.device)
            point, predictive = (likelihood.prediction(part, known) for part in (logits[:1], logits[1:]))
            if labels is not None:
                density = likelihood.log_predictive_density(logits[1:].to(labels.device), labels)
        if labels is not None and density is not None:
            loss = -density.sum() / max(1, likelihood.num_observations(labels))
            labels = labels.reshape(predictive.labels.shape)
        if prediction_loss_only:
            return loss, None, None
        summaries = (likelihood.summary(found).to(self.args.device) for found in (predictive, point))
        return loss, tuple(summaries), labels


def predictive_metrics(likelihood: Likelihood, prediction: EvalPrediction) -> dict[str, float]:
    """Metrics of what `SVITrainer.prediction_step` returns: of the predictive, and with `point_` of the mean."""
    pairs: Any = prediction.predictions
    if isinstance(pairs, list):  # batch by batch, with eval_do_concat_batches=False
        pairs = [np.concatenate(batches) for batches in zip(*pairs, strict=True)]
    summaries = (torch.from_numpy(np.asarray(values)) for values in pairs)
    label_ids: Any = prediction.label_ids
    labels = torch.from_numpy(np.concatenate(label_ids) if isinstance(label_ids, list) else np.asarray(label_ids))
    predictive, point = (likelihood.metrics(likelihood.of_summary(summary, labels)) for summary in summaries)
    return {**predictive, **{f"point_{name}": value for name, value in point.items()}}


def _of_predictive(predictions: Any) -> Any:
    """The posterior predictive's part of what `SVITrainer.prediction_step` returns, whole or as a list of batches."""
    if isinstance(predictions, list):
        return [batch[0] for batch in predictions]
    return None if predictions is None else predictions[0]
