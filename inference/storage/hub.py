"""Posteriors on the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download

from bayes_lora.errors import BayesLoRAError, HubError, PosteriorFileError
from bayes_lora.inference.storage.model_card import located_card
from bayes_lora.inference.storage.posterior_files import CARD_FILE, LOADED, posterior_names, read_whole

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload a posterior over LoRA adapters with bayes_lora",
) -> str:
    """Put a folder that `save_posterior` wrote on the Hugging Face hub, in one commit, and return its address there.

    The repository is made if it does not exist. Only the files of the posterior and its model card go there; the card
    then names the repository where it said where to load the posterior from.

    Args:
        folder: the posterior.
        repo_id: "owner/name", or "name" in the account of the token.
        private: make a new repository private.
        token: of the hub; by default that of ``hf auth login`` or of the environment.
        commit_message: what the commit says.

    Raises:
        PosteriorFileError: the folder is no posterior, or one that is not whole. Nothing is sent then.
        HubError: the hub cannot be reached or does not let this token write there, or `private` was asked for and
            the repository exists and is public.

    Example:
        >>> push_to_hub("run/posterior", "me/sentiment-posterior", private=True)  # doctest: +SKIP
        'https://huggingface.co/me/sentiment-posterior'
    """
    folder = Path(folder)
    names = posterior_names(read_whole(folder))
    api = HfApi(token=token)
    with _named_errors(f"{folder} could not be pushed to {repo_id!r}"):
        # Not False, which would override the default of an organization whose repositories are private.
        created = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(created.repo_id).private:
            raise HubError(
                f"{repo_id} exists already and is public, so {folder} was not pushed there. Make it private in its "
                "settings on the hub, choose another name, or leave private out."
            )
        contents: dict[str, Path | bytes] = {name: folder / name for name in names}
        if (folder / CARD_FILE).is_file():
            text = (folder / CARD_FILE).read_text(encoding="utf-8")
            contents[CARD_FILE] = located_card(text, created.repo_id).encode()
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        api.create_commit(created.repo_id, operations, commit_message=commit_message)
    return str(created)


def find_posterior(where: str | Path, revision: str | None = None) -> Path:
    """The folder itself, or what was downloaded from the repository of that name where there is no such folder.

    Raises:
        PosteriorFileError: `revision` was given for a folder.
        HubError: no such folder, and no such repository that can be read.
    """
    if isinstance(where, str) and not Path(where).exists() and _REPOSITORY.fullmatch(where):
        with _named_errors(f"there is no folder {where}, and {where!r} could not be downloaded from the hub"):
            return Path(snapshot_download(where, revision=revision, allow_patterns=list(LOADED)))
    if revision is not None:
        raise PosteriorFileError(
            f"revision={revision!r} is of a repository on the hub, but {where} is a folder. Leave revision out."
        )
    return Path(where)


@contextmanager
def _named_errors(what: str) -> Iterator[None]:
    try:
        yield
    except BayesLoRAError:
        raise
    # The client's errors have no base in common: its own are OSError or ValueError, its HTTP library's are neither.
    except Exception as error:
        raise HubError(f"{what} ({type(error).__name__}: {error}). {_remedy(error)}") from error


def _remedy(error: Exception) -> str:
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404):
        return "Check the name (and the revision), and log in with a token that may do this: hf auth login."
    if isinstance(error, ValueError):
        return "Correct what it names."
    return "Check the network connection, and that HF_HUB_OFFLINE is not set, and try again."
