"""What a run has reached, on the disk, so that the same command goes on after any stop.

While a run lasts, its folder is `<output>.training`: `state.safetensors` is replaced as a whole,
`log.jsonl` grows and is cut back to what the state knows of, `best.safetensors` holds the weights
that ranked held-out pairs best. When it ends, the whole model is written beside them and takes the
place of `<output>`.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from e5core.bulk.sources import identify
from e5core.formats.durable import replace_durably, sync, write_json_durably
from e5core.formats.files import lock_folder, read_json_object
from e5core.train.settings import Settings

RECORD_FILE = "training.json"
LOG_FILE = "training.jsonl"
STATE_FILE, BEST_FILE, GROWING_LOG = "state.safetensors", "best.safetensors", "log.jsonl"
_KEY = "training"


@dataclass
class Progress:
    """Where a run is.

    step      steps that were taken
    log_size  bytes of the log that belong to them
    before    figures of held-out pairs before the first step
    best      the best figures since, and the step that they are of
    best_step
    loss_scale  what losses in float16 are multiplied by
    calm      steps since it was changed
    """

    step: int = 0
    log_size: int = 0
    before: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int = 0
    loss_scale: float = 1.0
    calm: int = 0


class RunFolder:
    """The folder of a run that is under way, and the place of its result."""

    def __init__(self, output: Path, made_from: Mapping[str, Any]) -> None:
        """made_from: what decides the bytes of the result, as JSON holds it."""
        self.output = output
        self.path = state_folder(output)
        self._made_from = json.loads(json.dumps(made_from))

    def finished(self) -> dict[str, Any] | None:
        """The record of a result that this very run has made; None if there is none."""
        record = self.output / RECORD_FILE
        if not record.is_file():
            return None
        content = read_json_object(record)
        return content if content.get("made_from") == self._made_from else None

    @contextmanager
    def claimed(self, force: bool) -> Iterator[None]:
        """Make the folder and keep other processes out of it as long as the block lasts.

        Raises ValueError if one of them is in it, FileExistsError if the output is there and
        `force` does not say that it may be replaced, or if it is not a model's folder.
        """
        if self.output.exists() and not force:
            raise FileExistsError(
                f"{self.output} is there already, and was not made by this command; name another "
                "output, or replace it with force=True (--force)"
            )
        if self.output.exists() and not _is_replaceable(self.output):
            raise FileExistsError(
                f"{self.output} is not a model's folder, and what is in it would be lost; name "
                "another output"
            )
        if not self.output.absolute().parent.is_dir():
            raise FileNotFoundError(
                f"cannot write {self.output}: the folder {self.output.parent} does not exist"
            )
        self.path.mkdir(exist_ok=True)
        with lock_folder(self.path) as ours:
            if not ours:
                raise ValueError(f"another process trains in {self.path}; wait for its end")
            yield

    def open(self, restart: bool) -> tuple[Progress, dict[str, Tensor]]:
        """Where the run is, and its tensors; none if it begins.

        restart  throw away what is there, and begin. The folder itself stays: it is the lock

        Raises ValueError if another run has left its state.
        """
        state = self.path / STATE_FILE
        if restart:
            state.unlink(missing_ok=True)
            self.log.unlink(missing_ok=True)
        if not state.is_file():
            return Progress(), {}
        try:
            with safe_open(state, "pt") as opened:
                said = json.loads((opened.metadata() or {})[_KEY])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{state} is damaged ({error}); begin anew with --restart") from error
        self._compare(said["made_from"])
        return Progress(**said["progress"]), load_file(state)

    def save(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Put a state in the place of the last one; that one stays if the disk is full."""
        said = {"made_from": self._made_from, "progress": asdict(progress)}
        _write(self.path / STATE_FILE, tensors, {_KEY: json.dumps(said)})

    def save_best(self, weights: Mapping[str, Tensor]) -> None:
        _write(self.path / BEST_FILE, weights, {})

    def load_best(self) -> dict[str, Tensor]:
        return load_file(self.path / BEST_FILE)

    @property
    def log(self) -> Path:
        return self.path / GROWING_LOG

    def draft(self) -> Path:
        """An empty folder to write the model into."""
        draft = self.path / "model"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        return draft

    def finish(self, record: Mapping[str, Any]) -> None:
        """Put the model that lies in the draft, with its record and log, in the output's place."""
        draft = self.path / "model"
        shutil.copyfile(self.log, draft / LOG_FILE)
        write_json_durably(draft / RECORD_FILE, {"made_from": self._made_from, **record})
        for file in draft.rglob("*"):
            sync(file)
        if self.output.exists():
            shutil.rmtree(self.output)
        draft.rename(self.output)
        sync(self.output.absolute().parent)
        shutil.rmtree(self.path)

    def _compare(self, said: Mapping[str, Any]) -> None:
        """ValueError unless a state is of this very run; it names what differs."""
        differing = [
            f"{name} was {_short(said.get(name))} and is {_short(self._made_from.get(name))}"
            for name in {**said, **self._made_from}
            if said.get(name) != self._made_from.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self.path} holds the state of another run: {'; '.join(differing)}. Give "
                "that command to go on with it, begin anew with restart=True (--restart), or name "
                "another output"
            )


def state_folder(output: Path) -> Path:
    """Where the state of a run lies until its output is there."""
    return output.with_name(f"{output.name}.training")


def describe_run(
    settings: Settings, files: list[str], held: list[str], **more: Any
) -> dict[str, Any]:
    """What decides the bytes of a run's result.

    files, held  those of the rows to train on, and of held-out rows
    """
    return {
        "data": [identify(file) for file in files],
        "evaluate": [identify(file) for file in held],
        **asdict(settings),
        **more,
    }


def refuse_inputs_in(output: Path, inputs: Sequence[str]) -> None:
    """ValueError if a file or folder that is read lies where the result will be put."""
    for name in inputs if output.exists() else ():
        path = Path(name).expanduser()
        if path.exists() and output.resolve() in (path.resolve(), *path.resolve().parents):
            raise ValueError(
                f"{name} lies in {output}, which the result replaces; name another output"
            )


def _is_replaceable(output: Path) -> bool:
    """Whether a folder is a model's, or empty."""
    return output.is_dir() and ((output / "config.json").is_file() or not any(output.iterdir()))


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replace_durably(path) as temporary:
        try:
            save_file(own, temporary, metadata=metadata)
        except SafetensorError as error:  # safetensors' error for a full disk
            raise OSError(f"cannot write {temporary}: {error}") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
