"""Upload of a trained model to the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from cagsr.errors import EndpointError, InputError

__all__ = ["push_to_hub"]


def push_to_hub(directory: Path, repo_id: str, *, private: bool = False) -> str:
    """Create the repository where there is none and upload ``directory``; returns the commit's URL.

    Raises InputError where nothing is trained yet, EndpointError where the hub refuses or does not answer.
    """
    if not (directory / "config.json").is_file() and not (directory / "adapter_config.json").is_file():
        raise InputError(f"push_to_hub: {directory} holds no model yet; train first")
    hub = HfApi()
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        return str(hub.upload_folder(folder_path=str(directory), repo_id=repo_id).commit_url)
    except (HfHubHTTPError, OSError) as error:
        raise EndpointError(
            f"push_to_hub: {repo_id}: {error}. Log in with `hf auth login`, and check the network."
        ) from error
