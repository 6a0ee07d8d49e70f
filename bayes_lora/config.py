"""The options of the posterior over LoRA-A."""

import functools
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from bayes_lora.checks import require_choice, require_count, require_non_negative, require_positive
from bayes_lora.errors import ConfigurationError

DegreesOfFreedom = Literal["rank", "in_features"] | float

# The options that only one objective has, with their defaults there; None elsewhere.
_PAPER_ONLY: dict[str, Any] = {"kl_weight": 1e-5, "cooperative_weight": 1.0}
_ELBO_ONLY: dict[str, Any] = {"num_train_examples": None, "prior_scale": 0.1, "kl_temperature": 1.0}


_Config = TypeVar("_Config")


def _reads_old_name(config: type[_Config]) -> type[_Config]:
    """Takes `temperature`, as files and scripts of version 0.1 call `kl_temperature`."""
    init: Any = config.__init__

    @functools.wraps(init)
    def renamed(self: _Config, *args: Any, **options: Any) -> None:
        old = options.pop("temperature", None)
        if old is not None and options.setdefault("kl_temperature", old) is not old:
            raise ConfigurationError(f"temperature={old!r} is the old name of kl_temperature. Give one of them.")
        init(self, *args, **options)

    setattr(config, "__init__", renamed)  # noqa: B010
    return config


@_reads_old_name
@dataclass(frozen=True)
class MonteCLoRAConfig:
    """What the posterior over LoRA-A is, and which objective learns it.

    Written with mu for PEFT's LoRA-A weight, ``A = mu + sample_scale * noise``; `docs/theory.md` has the whole model.

    Attributes:
        num_components: N, Gaussian draws averaged with Dirichlet weights.
        num_outer_samples: M, independent (pi, Sigma, S) draws averaged in one perturbation.
        sample_scale: epsilon, multiplies the noise; 0 is plain LoRA (objective "paper" only).
        prior_concentration: a0, the symmetric Dirichlet prior.
        init_concentration: where the guide's alpha starts; "random" is U(0, 1), kept above 1e-3.
        degrees_of_freedom: nu of the Wishart, at least the rank: "rank", "in_features" or a number.
            Default: "rank" for objective "paper", "in_features" for "elbo".
        mixture: "dense" averages the components with pi, "sparse" takes the one with the largest weight.
        sampler: "collapsed" draws the mixture's sum once (same distribution, cost independent of N);
            "explicit" draws all N components.
        objective: "paper" is the loss of the paper with its sign errors mended; "elbo" is the evidence lower bound.
        normal_kl: the KL of the noise: "sampled" at the drawn Sigma, "expected" averaged over Sigma in closed form
            (the same objective, without that noise in its gradient).
        kl_weight: eta, of objective "paper" (default 1e-5).
        cooperative_weight: weight of mean_l sum_k pi_k^2, of objective "paper" (default 1).
        num_train_examples: n, the number of training rows, of objective "elbo". Where it is None, `fit` and
            `SVITrainer` take it from their data; elsewhere `BayesianLoRA.set_num_train_examples` sets it.
        prior_scale: standard deviation of the prior on A, of objective "elbo" (default 0.1).
        kl_temperature: T, weight of the KL in objective "elbo" (default 1, the bound itself): what is learned is
            the posterior proportional to p(A) prod_i p(y_i | A)^(1 / T). Not the temperature of a softmax, which is
            that of `TemperatureScaled`. Up to version 0.1 it was called `temperature`, which is still read.

    Raises:
        ConfigurationError: a value outside its domain, or an option of the other objective.

    Source: arXiv 2411.04358, Algorithm 1 and section 4.

    Example:
        >>> MonteCLoRAConfig(num_components=8, sample_scale=0.05).degrees_of_freedom
        'rank'
    """

    num_components: int = 4
    num_outer_samples: int = 1
    sample_scale: float = 5e-3
    prior_concentration: float = 1.0
    init_concentration: float | Literal["random"] = 1.0
    degrees_of_freedom: DegreesOfFreedom | None = None
    mixture: Literal["dense", "sparse"] = "dense"
    sampler: Literal["collapsed", "explicit"] = "collapsed"
    objective: Literal["paper", "elbo"] = "paper"
    normal_kl: Literal["sampled", "expected"] = "sampled"
    kl_weight: float | None = None
    cooperative_weight: float | None = None
    num_train_examples: int | None = None
    prior_scale: float | None = None
    kl_temperature: float | None = None

    def __post_init__(self) -> None:
        require_choice("mixture", self.mixture, ("dense", "sparse"))
        require_choice("sampler", self.sampler, ("collapsed", "explicit"))
        require_choice("objective", self.objective, ("paper", "elbo"))
        require_choice("normal_kl", self.normal_kl, ("sampled", "expected"))
        require_count("num_components", self.num_components)
        require_count("num_outer_samples", self.num_outer_samples)
        require_positive("prior_concentration", self.prior_concentration)
        if self.init_concentration != "random":
            require_positive("init_concentration", self.init_concentration, hint="a number > 0, or 'random'")
        self._resolve_objective_options()
        if self.degrees_of_freedom is None:
            object.__setattr__(self, "degrees_of_freedom", "rank" if self.objective == "paper" else "in_features")
        elif isinstance(self.degrees_of_freedom, str):
            require_choice("degrees_of_freedom", self.degrees_of_freedom, ("rank", "in_features"))
        else:
            require_positive("degrees_of_freedom", self.degrees_of_freedom)
        if self.objective == "paper":
            require_non_negative("sample_scale", self.sample_scale)
            require_non_negative("kl_weight", self.kl_weight)
            require_non_negative("cooperative_weight", self.cooperative_weight)
        else:
            require_positive("sample_scale", self.sample_scale, hint="its KL is infinite at 0")
            require_positive("prior_scale", self.prior_scale)
            require_positive("kl_temperature", self.kl_temperature)
            if self.num_train_examples is not None:
                require_count("num_train_examples", self.num_train_examples)
            if self.sampler == "explicit" or self.num_outer_samples != 1:
                raise ConfigurationError(
                    "objective='elbo' has one site for A itself, so it exists with sampler='collapsed' and "
                    f"num_outer_samples=1 only; got sampler={self.sampler!r}, "
                    f"num_outer_samples={self.num_outer_samples}. Leave both at their defaults."
                )

    def _resolve_objective_options(self) -> None:
        own, other, name = (
            (_PAPER_ONLY, _ELBO_ONLY, "elbo") if self.objective == "paper" else (_ELBO_ONLY, _PAPER_ONLY, "paper")
        )
        for option in other:
            if getattr(self, option) is not None:
                raise ConfigurationError(
                    f"{option}={getattr(self, option)!r} belongs to objective={name!r}, but objective="
                    f"{self.objective!r}. Drop {option}, or set objective={name!r}."
                )
        for option, default in own.items():
            if getattr(self, option) is None:
                object.__setattr__(self, option, default)

    def resolve_degrees_of_freedom(self, rank: int, in_features: int) -> float:
        """nu for an adapter whose LoRA-A is (rank, in_features).

        Raises:
            ConfigurationError: nu < rank, where a Wishart draw is singular or close to it.
        """
        named = {"rank": float(rank), "in_features": float(in_features)}
        choice = self.degrees_of_freedom
        nu = named[choice] if isinstance(choice, str) else float(choice)  # type: ignore[arg-type]
        if nu < rank:
            raise ConfigurationError(
                f"degrees_of_freedom={choice!r} is {nu:g}, below the LoRA rank {rank} of an adapter with in_features="
                f"{in_features}: its Wishart has no density. Give a number >= {rank}, or 'rank'."
            )
        return nu

    def wishart_scale(self, degrees_of_freedom: float) -> float:
        """c of the prior Wishart(nu, c I): 1 in the paper's objective, 1 / nu in the ELBO, where E[Sigma] = I."""
        return 1.0 if self.objective == "paper" else 1.0 / degrees_of_freedom
