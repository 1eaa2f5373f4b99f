"""A model id or a folder to local files. The only file that imports huggingface_hub."""

from pathlib import Path

from e5core.checkpoint import INDEX_FILE, WEIGHTS_FILE

CONFIG_FILE = "config.json"
# In the order of preference; the second is read where a repository lacks the first.
TOKENIZER_FILES = ("sentencepiece.bpe.model", "tokenizer.json")
SMALL_FILES = (
    CONFIG_FILE,
    INDEX_FILE,
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)


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
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    name = str(model)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name:
        raise FileNotFoundError(f"{name!r} is not a folder; give a folder or a hub id")
    if folder.exists():
        raise NotADirectoryError(f"{name!r} is a file; give the folder that it lies in")
    return _download(name, revision, cache_dir, token, local_files_only, weights)


def needed_files(published: set[str], weights: bool = True) -> list[str]:
    """Of all the files of a repository those that loading it reads: no pickles, no exports."""
    wanted = [name for name in SMALL_FILES if name in published]
    wanted += [name for name in sorted(published) if name.endswith("_Pooling/config.json")]
    wanted += [name for name in TOKENIZER_FILES if name in published][:1]
    if weights and WEIGHTS_FILE in published:
        wanted.append(WEIGHTS_FILE)
    elif weights:
        wanted += [
            name
            for name in sorted(published)
            if name.startswith("model-") and name.endswith(".safetensors")
        ]
    return wanted


def _download(
    repository: str,
    revision: str | None,
    cache_dir: str | Path | None,
    token: str | None,
    local_files_only: bool,
    weights: bool,
) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    unreachable: Exception | None = None
    try:
        if not local_files_only:
            try:
                info = HfApi(token=token).model_info(repository, revision=revision)
                published = {file.rfilename for file in info.siblings or ()}
                if weights and not {WEIGHTS_FILE, INDEX_FILE} & published:
                    raise FileNotFoundError(
                        f"{repository} publishes no safetensors weights, and others are never "
                        "loaded; convert them to safetensors in a folder of your own"
                    )
                return Path(
                    snapshot_download(
                        repository,
                        revision=revision,
                        cache_dir=cache_dir,
                        token=token,
                        allow_patterns=needed_files(published, weights),
                    )
                )
            except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
                raise
            except FileNotFoundError as error:
                if not isinstance(error, LocalEntryNotFoundError):
                    raise
                unreachable = error
            except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
                unreachable = error
            except Exception as error:
                # The HTTP library below huggingface_hub changed with its version 1.0 (requests,
                # then httpx) and its connection errors share no base class but Exception.
                if not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
                    raise
                unreachable = error
        return Path(
            snapshot_download(
                repository, revision=revision, cache_dir=cache_dir, local_files_only=True
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
    except (LocalEntryNotFoundError, EntryNotFoundError) as error:
        at = f" at revision {revision!r}" if revision else ""
        reason = (
            "local_files_only is set"
            if local_files_only
            else f"the hub cannot be reached ({type(unreachable).__name__}: {unreachable})"
        )
        raise FileNotFoundError(
            f"{repository}{at} is not in the cache and {reason}; connect once to download it, "
            "or give a folder"
        ) from error
