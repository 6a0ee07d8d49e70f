#!/usr/bin/env bash
# huggingface_hub 2.4.0 writes model cards from a template with Jinja2, which neither its requirements nor any of its extras
# for libraries bring: installed alone, `ModelCard(text)` works and `ModelCard.from_template` does not.
#
# Seen: ModelCard: ok
#       ModelCard.from_template: ImportError: Using RepoCard.from_template requires Jinja2 to be installed. ..
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet huggingface_hub==2.4.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/bin/python" - <<'PYTHON'
from huggingface_hub import ModelCard, ModelCardData

ModelCard("---\nlicense: mit\n---\n# A card\n")
print("ModelCard: ok")
try:
    ModelCard.from_template(ModelCardData(license="mit"), template_str="# {{ title }}", title="A card")
except ImportError as error:
    print(f"ModelCard.from_template: {type(error).__name__}: {error}")
else:
    raise SystemExit("changed: a card is written from a template without Jinja2 being asked for")
PYTHON
