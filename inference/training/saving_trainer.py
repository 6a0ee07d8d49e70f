"""A Trainer that saves and publishes posteriors where others save networks."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from transformers.trainer_utils import HubStrategy

from bayes_lora.errors import ConfigurationError
from bayes_lora.inference.storage.hub import push_to_hub
from bayes_lora.inference.storage.model_card import CardFacts, label_names_of, write_card
from bayes_lora.inference.storage.posterior_files import DESCRIPTION_FILE
from bayes_lora.inference.storage.posteriors import describe_guide, save_posterior
from bayes_lora.inference.training.sealed_trainer import SealedTrainer
from bayes_lora.inference.training.svi_module import SVIModule


class SavingTrainer(SealedTrainer):
    """`SealedTrainer` over an `SVIModule`: what it saves outside of checkpoints is a posterior."""

    svi: SVIModule
    num_samples: int | Literal["auto"]

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
            card: see `create_model_card`.

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
        self.create_model_card(**card)
        repository = self.args.hub_model_id or folder.resolve().name
        return push_to_hub(
            folder,
            repository,
            private=bool(self.args.hub_private_repo if private is None else private),
            token=token or self.args.hub_token,
            commit_message=commit_message or "End of training",
        )

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the posterior's model card, with the metrics of the last evaluation, into `args.output_dir`.

        The arguments are the Trainer's; `tags`, `model_name` and `tasks` are known from the posterior itself.
        """
        folder = Path(str(self.args.output_dir))
        if not self.is_world_process_zero():
            return
        if not (folder / DESCRIPTION_FILE).is_file():
            self._write_posterior(folder)
        evaluations = [logs for logs in self.state.log_history if "eval_nll" in logs]
        last = evaluations[-1] if evaluations else {}
        known = [name for name in ("accuracy", "nll", "ece", "brier") if f"eval_{name}" in last]
        facts = CardFacts(
            task=dataset if isinstance(dataset, str) else None,
            label_names=label_names_of(self.svi.model.network),
            base_model=finetuned_from if finetuned_from and not Path(finetuned_from).exists() else None,
            dataset=(dataset_tags, dataset_args if isinstance(dataset_args, str) else None)
            if isinstance(dataset_tags, str)
            else None,
            predictive_metrics={name: last[f"eval_{name}"] for name in known},
            point_metrics={name: last[f"eval_point_{name}"] for name in known},
            num_samples=self.num_samples,
            language=language,
            license=license,
        )
        write_card(folder, facts)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The Trainer would send its own checkpoint, which nobody can load a posterior from.
        if self.args.hub_strategy != HubStrategy.END:
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}")

    def _write_posterior(self, folder: Path) -> None:
        guide: Any = self.svi.guide
        describe_guide(self.svi.model, guide)  # else a guide that cannot be saved would leave an empty folder
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix=".posterior-") as scratch:
            written = save_posterior(self.svi.model, guide, Path(scratch) / "posterior")
            # The description last: beside files of another save it would not fit their checksums.
            files = [path for path in written.rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda path: path.name == DESCRIPTION_FILE):
                place = folder / path.relative_to(written)
                place.parent.mkdir(exist_ok=True)
                path.replace(place)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
