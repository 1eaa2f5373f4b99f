"""The encoder that mteb is given: each text is embedded once a run, and a stopped run goes on."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import e5core
from e5core.bulk.journal import model_digests
from e5core.checkpoint.folder import ModelFolder
from e5core.checkpoint.options import LoadOptions
from e5core.encoder import Encoder
from e5core.evaluate.results import digest
from e5core.evaluate.store import VectorStore
from e5core.evaluate.tasks import BITEXT
from e5core.integrations.mteb import E5Encoder, SymmetricPrefix
from e5core.model import InputType, Vectors
from e5core.prompts import prefix_for

# Texts that are embedded before their vectors are written: a second or two of work on a CPU, which
# is what a killed run loses.
BLOCK = 512
# The advice of docs/evaluation.md by the type of the task; "query" for all others.
ADVICE: dict[str, SymmetricPrefix] = {BITEXT: "none"}


class StoringEncoder(E5Encoder):
    """An encoder whose vectors are kept in a folder.

    advance  is called with the number of texts whenever so many have their vectors
    digest   of what scores depend on beside the data: of what the vectors are made from, and of
             the version of scikit-learn, whose classifiers differ in the third digit
    """

    def __init__(
        self,
        model_name: str | Path,
        options: LoadOptions,
        output: Path,
        symmetric_prefix: SymmetricPrefix | None = None,
        advance: Callable[[int], object] = lambda texts: None,
    ) -> None:
        """Load a model.

        output            the folder of the run, in which the vectors lie
        symmetric_prefix  of the texts of symmetric tasks; None follows the advice of ADVICE

        Raises ValueError if the vectors in the folder are of another model.
        """
        folder = ModelFolder.open(model_name, options)
        self.folder, self.advance = folder, advance
        chosen = {name: value for name, value in vars(options).items() if name != "revision"}
        super().__init__(model_name, options.revision, **chosen)
        self.fixed_prefix = symmetric_prefix
        encoder = self.model.encoder
        dtype = str(encoder.kernels.dtype).removeprefix("torch.")
        # A part of file names, and native kernels have a slash before their instructions.
        kernels = encoder.kernels.label.replace("/", "-")
        self.kind = {"dtype": dtype, "kernels": kernels}
        name = self.mteb_model_meta.name.replace("/", "__").replace(" ", "_")
        made_from = {
            **how_it_runs(encoder),
            **self.kind,
            "model": model_digests(folder),
            "prompts": self.model.prompts,
            "max_length": self.model.max_length,
            "truncate_dim": self.model.truncate_dim,
        }
        place = output / "vectors" / "__".join([name, *self.kind.values()])
        self.store = VectorStore(place, self.model.dimension, made_from)
        self.digest = digest([made_from, version("scikit-learn")])

    def close(self) -> None:
        """Let another run have the vectors."""
        self.store.close()

    def prefix_of(self, task: Any) -> SymmetricPrefix:
        """The prefix that the texts of a task get if it is symmetric."""
        return self.fixed_prefix or ADVICE.get(task.metadata.type, "query")

    def meta_of(self, task: Any) -> Any:
        """What results of a task are stored under: the model, and how it was run."""
        self.symmetric_prefix = self.prefix_of(task)
        how = {**self.kind, "symmetric_prefix": self.symmetric_prefix}
        return self.mteb_model_meta.model_copy(update={"experiment_kwargs": how})

    def embed(
        self, texts: list[str], input_type: InputType, task: str | None, show: bool | None
    ) -> Vectors:
        """Vectors from the store; texts that it lacks are embedded and added to it first."""
        prefix = prefix_for(self.model.prompts, input_type, task)
        keys = [prefix + text for text in texts]
        pairs = zip(keys, texts, strict=True)
        missing = list({key: text for key, text in pairs if key not in self.store}.items())
        self.advance(len(texts) - len(missing))
        for start in range(0, len(missing), BLOCK):
            some = missing[start : start + BLOCK]
            vectors = super().embed([text for _, text in some], input_type, task, False)
            self.store.add([key for key, _ in some], vectors)
            self.advance(len(some))
        return self.store.get(keys)


def how_it_runs(encoder: Encoder) -> dict[str, str]:
    """What an encoder's numbers depend on beside its weights."""
    return {
        "dtype": str(encoder.kernels.dtype).removeprefix("torch."),
        "kernels": encoder.kernels.label,
        "device": encoder.device.type,
        "e5core": e5core.__version__,
        "torch": str(torch.__version__),
    }
