"""A trained model on the Hugging Face hub."""

from pathlib import Path

from accelerate import PartialState
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from cagsr.errors import EndpointError, InputError

__all__ = ["push_to_hub"]


def push_to_hub(directory: Path, repo_id: str, *, private: bool = False) -> str:
    """Create the repository where there is none and upload ``directory``; returns the commit's URL.

    Only the main process uploads; the others return an empty text. Raises InputError where nothing is trained yet or
    the name can be none, EndpointError where the hub refuses or does not answer.
    """
    if not any((directory / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise InputError(f"push_to_hub: {directory} holds no model yet; train first")
    if not PartialState().is_main_process:
        return ""
    hub = HfApi()
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        return str(hub.upload_folder(folder_path=str(directory), repo_id=repo_id).commit_url)
    except HFValidationError as error:
        raise InputError(
            f"push_to_hub: {repo_id!r} cannot be a repository: {error}; name it owner/name"
        ) from error
    except Exception as error:  # the client's own errors of a network are of many kinds
        raise EndpointError(
            f"push_to_hub: {repo_id}: {type(error).__name__}: {error}. Log in with `hf auth login`, and check "
            "the network."
        ) from error
