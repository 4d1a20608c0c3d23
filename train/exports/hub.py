"""Upload of an export to the hub."""

from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

REFUSED = (401, 403)
"""Status of an answer to a token that is wrong, or that may not do this."""


def check_repository(repository: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        ValueError: It is not of the form USER/NAME.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"--push {repository!r} is no name of a repository: expected USER/NAME") from error
    if "/" not in repository:
        raise ValueError(f"--push {repository!r} names no user or organisation: expected USER/NAME")


def push(folder: Path, repository: str, private: bool) -> str:
    """Upload a folder as the newest commit of a model's repository, which is made if it is not there.

    Args:
        folder: Folder of the export.
        repository: USER/NAME.
        private: Let nobody else see it.

    Returns:
        Address of the repository.

    Raises:
        ValueError: The hub cannot be reached, refuses the token or the card, or holds a public repository of that name
            though it was to be private. The folder stays as it is.
    """
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        if private and not hub.model_info(repository).private:
            raise ValueError("the repository is there already, and public: make it private first, or take another name")
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Upload {folder.name}")
    except Exception as error:
        if not (isinstance(error, OSError | ValueError) or _of_the_client(error)):
            raise
        raise ValueError(
            f"{folder} is exported, but was not pushed to {repository}: {_reason(error)}. "
            f"When that is mended: hf upload {repository} {folder} .{' --private' if private else ''}"
        ) from None
    return f"{constants.ENDPOINT}/{repository}"


def _reason(error: Exception) -> str:
    """What is wrong, in a line."""
    if isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSED:
        return "the hub refuses the token; hf auth login, or HF_TOKEN with the right to write there"
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    if not isinstance(error, HfHubHTTPError) and _of_the_client(error):
        return f"no connection to {constants.ENDPOINT} ({error})"
    return " ".join(str(error).split()).rstrip(".")


def _of_the_client(error: Exception) -> bool:
    """Whether the HTTP client that the hub's library stands on has raised it, httpx or its successor."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2")
