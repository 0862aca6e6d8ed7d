"""The hub of Hugging Face: the one place that fetches dictionaries from it, publishes them, and knows where it is.

`HF_ENDPOINT` names another hub, `HF_HUB_OFFLINE` keeps to what was fetched before, `HF_HOME` says where that lies.
"""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kyomei.errors import DataError, KyomeiError

DICTIONARY_FILES = ("*.safetensors", "*.json", "*.md", "*.npz", "*.pt")
"""What is fetched of a repository; a .pt file is read for its tensors alone."""
SECONDS_TO_ANSWER = 5.0


@dataclass(frozen=True)
class Access:
    """What of the hub can be had from here.

    Attributes:
        endpoint: its address.
        offline: whether the user asked to keep away from it.
        token: whether one is there, as publishing and gated models need.
        cache: where fetched files lie.
        problem: why it does not answer; none: it does, or it was not asked because of `offline`.
    """

    endpoint: str
    offline: bool
    token: bool
    cache: Path
    problem: str | None


def access(seconds: float = SECONDS_TO_ANSWER) -> Access:
    """Ask the hub whether it answers; nothing is sent but the question.

    Args:
        seconds: to wait for its answer.
    """
    from huggingface_hub import constants, get_token

    problem = None if constants.HF_HUB_OFFLINE else _problem(constants.ENDPOINT, seconds)
    cache = Path(constants.HF_HUB_CACHE)
    return Access(constants.ENDPOINT, bool(constants.HF_HUB_OFFLINE), get_token() is not None, cache, problem)


def _problem(endpoint: str, seconds: float) -> str | None:
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=seconds):
            return None
    except urllib.error.HTTPError:
        return None  # it answers, if only with a refusal
    except (OSError, ValueError) as error:
        return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__


def fetch(name: str, revision: str | None = None, subfolder: str | None = None) -> Path:
    """The folder of a dictionary that a repository of the hub holds, fetched unless it was before.

    Args:
        name: of the repository, OWNER/NAME.
        revision: branch, tag or commit; none: its main branch.
        subfolder: where in the repository; none: at its top.

    Raises:
        DataError: there is none, it is gated, or the hub does not answer.
    """
    from huggingface_hub import snapshot_download

    within = f"{subfolder.strip('/')}/" if subfolder else ""
    # sparsify keeps what model it was trained on one folder up.
    above = [f"{within.rstrip('/').rpartition('/')[0]}/config.json".lstrip("/")] if within else []
    patterns = [*(within + pattern for pattern in DICTIONARY_FILES), *above]
    try:
        with _without_bars():
            # A pattern's * goes over slashes: without this, dictionaries in folders below would come as well.
            below = [within + "*/*"]
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=below))
    except Exception as error:  # the package raises kinds of its own and of two HTTP libraries
        at = f" at revision {revision}" if revision else ""
        do = "check the name and the revision, the network, and `hf auth login` for what is private; or name a folder"
        raise DataError(f"the repository {name}{at} on the hub", _in_one_line(error), do) from error
    place = folder / within if within else folder
    if not any(place.glob("*")):
        raise DataError(f"a dictionary in {name}/{within}", "no file of one", "check the repository's files and the subfolder")
    return place


def publish(folder: Path, name: str, *, private: bool, revision: str | None = None, message: str) -> str:
    """Upload all files of a folder as one commit, into a repository that is made if need be.

    Args:
        folder: what is uploaded.
        name: of the repository, OWNER/NAME.
        private: whether a new repository is closed to others; of one that is there nothing changes.
        revision: branch to commit to, made if need be; none: its main branch.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        KyomeiError: there is no right to do so, or the hub does not answer.
    """
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        with _without_bars():
            api.create_repo(name, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(name, branch=revision, exist_ok=True)
            done = api.upload_folder(repo_id=name, folder_path=str(folder), revision=revision, commit_message=message)
    except Exception as error:  # as above
        do = "check its name, the network, and that `hf auth login` was done with a token that may write"
        raise KyomeiError(f"the repository {name} on the hub, to write to", _in_one_line(error), do) from error
    return str(done.commit_url)


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """The package without its progress bars for a while, for who has not switched them off himself."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _in_one_line(error: Exception) -> str:
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"{type(error).__name__}: {said[:300]}"
