"""Everything that a run holds, put together before its first step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from e5core.checkpoint.options import LoadOptions
from e5core.train.average import Start
from e5core.train.data import Data, read_data
from e5core.train.optimizer import Optimizer
from e5core.train.plan import Plan
from e5core.train.ranks import Ranks
from e5core.train.settings import Settings
from e5core.train.start import Task, choose_trained
from e5core.train.state import Progress, RunFolder, describe_run, refuse_inputs_in

# Losses in float16 are multiplied by this at first. Source: torch.amp.GradScaler.
FIRST_SCALE = 2.0**16


@dataclass
class Run:
    """A model, its data and how far it has come.

    model     the folder or hub id that it starts from
    held      held-out examples, None without them
    steps     of the whole run
    rate      the highest learning rate
    start     its weights before the first step
    """

    model: str
    task: Task
    settings: Settings
    data: Data
    held: Data | None
    plan: Plan
    steps: int
    rate: float
    optimizer: Optimizer
    start: Start
    folder: RunFolder
    ranks: Ranks
    progress: Progress

    def is_due(self, every: int | None) -> bool:
        """Whether the step that was just taken is one of every so many, or the last."""
        step = self.progress.step
        return step == self.steps or step % (every or self.plan.steps_per_epoch) == 0

    def save(self, log_size: int) -> None:
        """Take what the run has reached to the disk."""
        self.progress.log_size = log_size
        if self.ranks.first:
            self.folder.save(self.optimizer.tensors(), self.progress)
        self.ranks.wait()

    def resume(self, restart: bool) -> None:
        """Go on from the state that the folder holds, if it holds one."""
        if not self.ranks.first:
            self.ranks.wait()  # until the first has thrown away what is not to count
        self.progress, tensors = self.folder.open(restart and self.ranks.first)
        if tensors:
            self.optimizer.load(tensors)
        elif self.settings.precision == "float16":
            self.progress.loss_scale = FIRST_SCALE
        if self.ranks.first:
            self.ranks.wait()
        self.ranks.wait()  # Nobody goes on, and perhaps ends, before all have read.


def prepare(
    model: str,
    task: Task,
    data: Sequence[str],
    evaluate: str | None,
    output: Path,
    ranks: Ranks,
) -> Run:
    """Read the data and choose what is trained."""
    settings = task.settings
    if settings.evaluate_every and evaluate is None:
        raise ValueError(
            f"evaluate_every is {settings.evaluate_every}, but there are no held-out rows; name "
            "them with evaluate= (--evaluate)"
        )
    found = read_data(data, task.tokenize, task.passage_role, settings.teacher_weight > 0)
    held = None
    if evaluate is not None:
        held = read_data([evaluate], task.tokenize, task.passage_role)
    if not task.gives_vectors:
        with_negatives = [example for example in found.examples if example.negatives]
        found.skipped = len(found.examples) - len(with_negatives)
        found.examples = with_negatives
        if not with_negatives:
            raise ValueError(
                f"none of {found.skipped} examples has negatives, from which a reranker learns; "
                "add neg to their rows, for example with e5core mine"
            )
    parameters, start = choose_trained(task)
    plan = Plan(found.members(), settings.batch_size, settings.seed, settings.mixed)
    kind = {"model": model, "reranker": not task.gives_vectors, "ranks": ranks.size}
    held_files = [] if held is None else held.files
    refuse_inputs_in(output, [model, *found.files, *held_files])
    made_from = describe_run(settings, found.files, held_files, **kind, **task.made_from)
    return Run(
        model,
        task,
        settings,
        found,
        held,
        plan,
        settings.steps or settings.epochs * plan.steps_per_epoch,
        settings.rate_for(task.encoder.config.hidden_size),
        Optimizer(parameters, settings, task.rows),
        start,
        RunFolder(output, made_from),
        ranks,
        Progress(),
    )


def split_options(options: Mapping[str, Any]) -> tuple[Settings, LoadOptions]:
    """The two kinds of options that `train` takes; TypeError for any other."""
    ours = {field.name for field in fields(Settings)}
    theirs = {field.name for field in fields(LoadOptions)}
    if unknown := set(options) - ours - theirs:
        raise TypeError(
            f"train takes no {sorted(unknown)[0]!r}; it takes {', '.join(sorted(ours | theirs))}"
        )
    return (
        Settings(**{name: value for name, value in options.items() if name in ours}),
        LoadOptions(**{name: value for name, value in options.items() if name in theirs}),
    )
