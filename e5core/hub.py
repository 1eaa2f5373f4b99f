"""A model id or a folder to local files. The only file that imports huggingface_hub."""

from collections.abc import Sequence
from pathlib import Path

from e5core.checkpoint import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE

# In the order of preference; the second is read where a repository lacks the first.
TOKENIZER_FILES = ("sentencepiece.bpe.model", "tokenizer.json")
# All that loading reads, so that no pickle, export or picture is fetched.
SMALL_FILES = (
    CONFIG_FILE,
    TOKENIZER_FILES[0],
    "modules.json",
    "*_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
WEIGHTS_FILES = (WEIGHTS_FILE, INDEX_FILE, "model-*.safetensors")


def resolve(
    model: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    weights: bool = True,
) -> Path:
    """The folder that holds a model's files.

    model    a folder, or a hub id like "intfloat/multilingual-e5-small"
    weights  False leaves the weights on the hub

    A hub id is downloaded into huggingface_hub's cache, needed files only, or taken from
    there when the hub cannot be reached. Raises OSError saying what is wrong.
    """
    name = str(model)
    folder = Path(model).expanduser()
    if name and folder.is_dir():
        return folder
    if folder.is_file():
        raise NotADirectoryError(f"{name!r} is a file; give the folder that it lies in")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name:
        raise FileNotFoundError(f"{name!r} is not a folder; give a folder or a hub id")

    def download(patterns: Sequence[str]) -> Path:
        return _download(name, patterns, revision, cache_dir, token, local_files_only)

    folder = download([*SMALL_FILES, *(WEIGHTS_FILES if weights else ())])
    if weights and not any((folder / file).is_file() for file in (WEIGHTS_FILE, INDEX_FILE)):
        raise FileNotFoundError(
            f"{name} has no {WEIGHTS_FILE} and no {INDEX_FILE} on the hub, or none is in the cache "
            "and the hub cannot be reached; e5core loads safetensors only"
        )
    if not (folder / TOKENIZER_FILES[0]).is_file():
        download([TOKENIZER_FILES[1]])
    return folder


def _download(
    repository: str,
    patterns: Sequence[str],
    revision: str | None,
    cache_dir: str | Path | None,
    token: str | None,
    local_files_only: bool,
) -> Path:
    """Fetch the files that match the patterns; every failure becomes one sentence."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=list(patterns),
            )
        )
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{repository!r} is neither a folder nor a hub id like 'intfloat/multilingual-e5-small'"
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repository} has no revision {revision!r} on the hub") from error
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise FileNotFoundError(
            f"{repository!r} is not a folder here and not a model that the hub shows you; check "
            "the name, or pass token= for a private or gated one"
        ) from error
    except LocalEntryNotFoundError as error:
        at = f" at revision {revision!r}" if revision else ""
        why = "local_files_only is set" if local_files_only else "the hub cannot be reached"
        raise FileNotFoundError(
            f"{repository}{at} is not whole in the cache and {why}; connect once to download it, "
            "or give a folder"
        ) from error
    except Exception as error:
        # The HTTP library below huggingface_hub differs between its releases (requests, httpx),
        # and a connection that breaks during a download raises that library's own errors.
        raise OSError(
            f"{repository} could not be downloaded: {type(error).__name__}: {error}; try again, "
            "what has arrived is kept"
        ) from error
