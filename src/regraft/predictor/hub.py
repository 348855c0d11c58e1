"""An exported predictor onto the Hugging Face Hub, as the account that is logged in there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regraft.errors import PredictorError

README = "README.md"  # what the Hub shows as the model card


def push(files: Sequence[Path], card: Path, repository: str) -> str:
    """Put files into a model repository (OWNER/NAME); returns its address.

    A new repository is private until its owner opens it. The token is the one that `hf auth login` stored, or HF_TOKEN;
    it is neither asked for nor told. Raises PredictorError with what to do."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if get_token() is None:
        raise PredictorError("nobody is logged in to the Hub on this machine. Log in with: hf auth login")
    api = HfApi(library_name="regraft")
    additions = [
        CommitOperationAdd(README if file == card else file.name, str(file)) for file in dict.fromkeys([*files, card])
    ]
    try:
        address = api.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        api.create_commit(repository, additions, commit_message="Model exported by regraft")
    except HFValidationError as error:
        raise PredictorError(f"{repository!r} is no name of a repository, OWNER/NAME: {error}") from None
    except OfflineModeIsEnabled:
        raise PredictorError("the Hub is switched off here: unset HF_HUB_OFFLINE to push") from None
    except HfHubHTTPError as error:
        raise PredictorError(
            f"the Hub refused {repository!r}: {_first_line(error)}. May this account write there (hf auth whoami)?"
        ) from None
    except Exception as error:  # of whatever HTTP client this version of huggingface_hub uses
        raise PredictorError(
            f"the Hub cannot be reached from here ({type(error).__name__}: {_first_line(error)}). What was exported is "
            "on this machine; run the same command where there is internet."
        ) from None
    return str(address)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
