"""The Hugging Face Hub: without a connection, its cache is used at once."""

import functools
import logging


@functools.cache
def connect() -> str:
    """Quieten the hub client; return "", or why the hub cannot be reached.

    Unreachable, it serves what its cache holds. Otherwise the client would retry each of its many
    requests for 23 seconds.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # the HTTP client has its own kinds
        constants.HF_HUB_OFFLINE = True  # `datasets` reads it when it is imported
        return f"{constants.ENDPOINT} cannot be reached ({error})"
    return ""
