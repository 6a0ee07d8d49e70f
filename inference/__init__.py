"""Inference: the guide, objectives, training, the posterior predictive, and the methods it is compared with.

Every name below is imported from its module when it is first asked for; `__init__.pyi` says which that is.
"""

from bayes_lora.lazy_names import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
