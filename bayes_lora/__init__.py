"""bayes_lora: a posterior over LoRA adapters, for any Hugging Face transformer.

The core room: what a posterior over LoRA-A is. `bayes_lora.models` builds the Pyro model on it,
`bayes_lora.inference` learns it and predicts with it, `bayes_lora.experiments` runs tasks from the command line.
"""

from bayes_lora.config import MonteCLoRAConfig
from bayes_lora.errors import BayesLoRAError

__version__ = "0.2.0.dev0"
"""The version of this library."""
__all__ = ["BayesLoRAError", "MonteCLoRAConfig", "__version__"]
