"""The Hugging Face Hub: without a connection, its cache is used at once."""

import functools
import logging
import os
import re
from pathlib import Path

from utils import files
from utils.errors import UserError, first_line

_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(?<!\.pt)(?<!\.bin)")  # no mask file


@functools.cache
def connect() -> str:
    """Quieten the hub client; return "", or why the hub cannot be reached.

    Unreachable, it serves what its cache holds. Otherwise the client would retry each of its many
    requests for 23 seconds.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    # it logs every retry
    logging.getLogger("huggingface_hub").setLevel(files.library_level())
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # the HTTP client has its own kinds
        constants.HF_HUB_OFFLINE = True  # `datasets` reads it when it is imported
        return f"{constants.ENDPOINT} cannot be reached ({error})"
    return ""


def local_folder(source: str, *names: str) -> Path:
    """Return the path `source`; if there is none, download the files `names` of that repository.

    Raises UserError if the hub does not give them. What cannot be a hub name is a path.
    """
    if os.path.exists(source) or not _NAME.fullmatch(source):
        return Path(source)
    from huggingface_hub import hf_hub_download

    offline = connect()
    try:
        first, *_ = [hf_hub_download(source, name) for name in names]
        return Path(first).parent
    except Exception as error:  # the hub client has its own kinds
        raise UserError(
            f"{source}: no such file or folder, and not available from the hub "
            f"({offline or first_line(error)[:150]}); give a mask file or an exported ticket"
        ) from error


def upload(folder: Path, name: str) -> str:
    """Upload a model folder to the repository `name`, made if needed; return its address.

    Raises UserError; the folder stays.
    """
    from huggingface_hub import HfApi

    offline = connect()
    try:
        if offline:
            raise ConnectionError(offline)
        address = HfApi().create_repo(name, exist_ok=True)
        HfApi().upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # the hub client has its own kinds
        raise UserError(
            f"{name}: not uploaded ({first_line(error)[:150]}); {folder} is complete: log in "
            f"(hf auth login), then run: hf upload {name} {folder}"
        ) from error
    return str(address)
