"""Checkpoints from the Hugging Face hub: only what export reads, never pickled weights."""

from __future__ import annotations

import re
from pathlib import Path

from pocketvlm.errors import CheckpointError, EnvironmentFault

ALLOWED_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "LICENSE*", "README.md")
IGNORED_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*\Z", re.ASCII)


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form owner/name and its owner is not a local directory."""
    return _HUB_ID.match(text) is not None and not Path(text.partition("/")[0]).is_dir()


def download(hub_id: str, revision: str | None) -> Path:
    """Fetch a checkpoint into the hub's cache (nothing is fetched twice) and return its directory.

    Raises:
        CheckpointError: no such repository or revision, or it asks for terms to be accepted first.
        EnvironmentFault: the huggingface_hub package is missing, the hub cannot be reached, or the disk is full.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise EnvironmentFault(
            f"{hub_id}: downloading needs the huggingface_hub package", "pip install 'pocketvlm[export]', or give a directory"
        ) from error
    try:
        found = huggingface_hub.snapshot_download(
            hub_id, revision=revision, allow_patterns=list(ALLOWED_FILES), ignore_patterns=list(IGNORED_FILES)
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{hub_id}: the hub gives this checkpoint only to those who accepted its terms",
            "accept them on its page, then run `hf auth login`",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{hub_id}: no such directory, and no such repository on the hub",
            "check the spelling, or run `hf auth login` if it is private",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{hub_id}: the repository has no revision {revision!r}", "give a branch, tag or commit"
        ) from error
    except Exception as error:  # every network library below has its own kinds
        first_line = str(error).strip().partition("\n")[0] or type(error).__name__
        raise EnvironmentFault(
            f"{hub_id}: no such directory, and the hub download failed: {first_line}",
            "check the network and the disk, or download the checkpoint elsewhere and give its directory",
        ) from error
    return Path(found)
