"""A model id or a folder to local files. The only file that imports huggingface_hub."""

from contextlib import suppress
from functools import partial
from pathlib import Path

from e5core.checkpoint.adapters import WEIGHTS_FILE as ADAPTER_WEIGHTS_FILE
from e5core.checkpoint.contents import (
    ADAPTER_FILE,
    ADDED_TOKENS_FILE,
    CARD_FILE,
    MODULES_FILE,
    PROMPTS_FILE,
    TOKENIZER_CONFIG_FILE,
    TRANSFORMER_FILES,
)
from e5core.checkpoint.headers import INDEX_FILE, WEIGHTS_FILE, weight_files
from e5core.checkpoint.options import LoadOptions
from e5core.checkpoint.prompts import PROMPTS_BY_MODEL, WITHOUT_PROMPTS
from e5core.checkpoint.sentence_transformers import LIMIT_FILE
from e5core.config import CONFIG_FILE

# In the order of preference. The second also says what is done to texts beside the first.
TOKENIZER_FILES = ("sentencepiece.bpe.model", "tokenizer.json")
SMALL_FILES = (CONFIG_FILE, INDEX_FILE, MODULES_FILE, LIMIT_FILE, PROMPTS_FILE)
_POOLING = "_Pooling/config.json"
# What tells more about fine-tuned models. A cache that an older release filled lacks these.
TUNED_FILES = (*TRANSFORMER_FILES[1:], TOKENIZER_CONFIG_FILE, ADDED_TOKENS_FILE, ADAPTER_FILE)
# Repositories, in lower case, whose tokenizer.json says nothing beyond their SentencePiece model.
PLAIN_TOKENIZERS = {
    *map(str.lower, PROMPTS_BY_MODEL),
    *WITHOUT_PROMPTS,
    "baai/bge-reranker-base",
    "baai/bge-reranker-large",
    "baai/bge-reranker-v2-m3",
    "snowflake/snowflake-arctic-embed-l-v2.0",
}
# The folders of the steps in modules.json end with these names.
_TRANSFORMER, _DENSE = "_Transformer/", "_Dense/"


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
    name, folder = str(model), Path(model).expanduser()
    if name and folder.is_dir():
        return folder
    if folder.is_file():
        raise NotADirectoryError(f"{name!r} is a file; give the folder that it lies in")
    from huggingface_hub.errors import HFValidationError

    cache = Path(cache_dir).expanduser() if cache_dir else None
    try:
        if local_files_only:
            return _cached(name, revision, cache, weights, "local_files_only is set")
        return _download(name, revision, cache, weights, token)
    except HFValidationError as error:
        raise FileNotFoundError(
            f"{name!r} is neither a folder nor a hub id like 'intfloat/multilingual-e5-small'"
        ) from error


def needed_files(published: set[str], weights: bool = True, plain: bool = False) -> list[str]:
    """The files of a repository that loading it reads; pickles and exports are not among them.

    plain  whether a tokenizer.json is known to say nothing beyond the SentencePiece model
    """
    inner = _transformer_folder(published)

    def there(folder: str, *names: str) -> list[str]:
        return [folder + name for name in names if folder + name in published]

    wanted = there("", *SMALL_FILES, *TUNED_FILES)
    wanted += there(inner, *SMALL_FILES, *TUNED_FILES) if inner else []
    wanted += sorted(name for name in published if name.endswith((_POOLING, _DENSE + CONFIG_FILE)))
    wanted += there(inner, *TOKENIZER_FILES)[: 1 if plain else 2]
    if not weights:
        return wanted
    wanted += sorted(name for name in published if name.endswith(_DENSE + WEIGHTS_FILE))
    wanted += there(inner, ADAPTER_WEIGHTS_FILE)
    if whole := there(inner, WEIGHTS_FILE):
        return wanted + whole
    shards = (name for name in published if name.startswith(inner + "model-"))
    return wanted + sorted(name for name in shards if name.endswith(".safetensors"))


def fetch_card(name: str, options: LoadOptions, folder: Path) -> None:
    """Add the model card to a download, if there is one and the hub can be reached.

    folder  the download, which is called like its commit
    """
    if options.local_files_only or (folder / CARD_FILE).is_file():
        return
    from huggingface_hub import errors, snapshot_download

    with suppress(OSError, ValueError, *errors.HfHubHTTPError.__bases__):
        cache = Path(options.cache_dir).expanduser() if options.cache_dir else None
        snapshot_download(
            name,
            revision=folder.name,
            cache_dir=cache,
            token=options.token,
            allow_patterns=[CARD_FILE],
        )


def _transformer_folder(published: set[str]) -> str:
    """Where a repository has its encoder: "" or a folder like "0_Transformer/"."""
    configs = (name for name in published if name.endswith(_TRANSFORMER + CONFIG_FILE))
    return min((name.removesuffix(CONFIG_FILE) for name in configs), default="")


def _check_weights(folder: Path) -> None:
    """Raise FileNotFoundError if a folder of the cache lacks weights."""
    inner = next(folder.glob("*" + _TRANSFORMER), folder)
    if not (inner / ADAPTER_WEIGHTS_FILE).is_file():
        weight_files(inner)


def _download(
    name: str, revision: str | None, cache: Path | None, weights: bool, token: str | None
) -> Path:
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    # A lost connection is an OSError up to huggingface_hub 0.36 (requests), later an error of
    # httpx, whose base class HfHubHTTPError shares. ValueError: the answer is not JSON but,
    # say, the login page of a public network.
    failures: tuple[type[Exception], ...] = (OSError, ValueError, *errors.HfHubHTTPError.__bases__)
    download = partial(snapshot_download, name, cache_dir=cache, token=token)
    published = None
    try:
        # Without a time limit a network that swallows packets would hang this for ever.
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        info = HfApi(token=token).model_info(name, revision=revision, timeout=timeout)
        published = {file.rfilename for file in info.siblings or ()}
        # The weights come last: where the cache holds them, it holds all the rest.
        plain = name.lower() in PLAIN_TOKENIZERS
        small = needed_files(published, weights=False, plain=plain)
        folder = Path(download(revision=revision, allow_patterns=small))
        if weights:  # of the same commit, wherever a branch has moved meanwhile
            wanted = needed_files(published, plain=plain)
            download(revision=folder.name, allow_patterns=wanted)
    except errors.HFValidationError:
        raise
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{name} has no revision {revision!r} on the hub; give a branch, a tag or a commit"
        ) from error
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{name} is gated; ask for access on its page on the hub, then pass token="
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name!r} is not a folder here and not a model that the hub shows you; check the "
            "name, or pass token= for a private one"
        ) from error
    except failures as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        if published is None:
            reason = f"the hub cannot be reached ({cause})"
            return _cached(name, revision, cache, weights, reason)
        raise OSError(f"the download of {name} broke off ({cause}); try again") from error
    inner = _transformer_folder(published)
    files = {inner + file for file in (WEIGHTS_FILE, INDEX_FILE, ADAPTER_WEIGHTS_FILE)}
    if weights and not files & published:
        raise FileNotFoundError(
            f"{name} publishes no safetensors weights, and others are never loaded; convert them "
            "to safetensors in a folder of your own"
        )
    return folder


def _cached(
    name: str, revision: str | None, cache: Path | None, weights: bool, reason: str
) -> Path:
    from huggingface_hub import snapshot_download

    # huggingface_hub 2.4 (1.0 does not) refuses if one of these is published but not here.
    small = [*SMALL_FILES, "*" + _POOLING]
    lack = "is not in the cache, or only in part,"
    with suppress(FileNotFoundError):
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=cache,
                local_files_only=True,
                allow_patterns=small,
            )
        )
        lack = "is in the cache without its weights, or some of them,"
        if weights:
            _check_weights(folder)
        return folder
    at = f" at revision {revision!r}" if revision else ""
    raise FileNotFoundError(
        f"{name}{at} {lack} and {reason}; connect once to download it, or give a folder"
    )
