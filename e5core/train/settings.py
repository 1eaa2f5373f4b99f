"""What a run of training is told: listed here and nowhere else."""

from dataclasses import dataclass, replace
from typing import Literal

TokenTable = Literal["frozen", "rows", "dense"]

# The share of the start in the result. In two epochs of 1,500 translations e5-small gained 33 to 38
# points and lost 3.6 of nDCG@10 on XQuAD; with half of the start it gained 29 to 34 and lost 1.2
# (2026-11).
KEEP = 0.5

# Learning rates by hidden size, between those that mE5 was pre-trained with (3e-4, 2e-4, 1e-4) and
# those that it was fine-tuned with (3e-5, 2e-5, 1e-5). Source: arXiv:2402.05672.
LEARNING_RATES = ((384, 1e-4), (768, 6e-5), (1024, 3e-5))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides a run, beside the model and the data.

    epochs        how often each example is seen, unless `steps` says when to stop
    steps         optimizer steps; None for as many as the epochs take
    batch_size    examples that one loss sees; memory does not grow with it
    negatives     hard negatives of each query, taken in turn from those that its row has
    learning_rate  the highest; None takes one by the size of the model
    warmup        steps to reach it; below 1 a share of all steps. Then it falls linearly to 0
    weight_decay  of the linears' matrices alone
    clip          the largest norm of the gradient; 0 for none
    temperature   what cosines are divided by
    symmetric     put the query prefix on both sides and train both directions
    mixed         fill batches from all files; otherwise a batch is from one file
    token_table   "frozen", "rows" (only rows that occur are updated) or "dense"; None is "frozen"
                  on a CPU and "dense" on a GPU
    guide         a model, a folder or a hub id with the same tokenizer and prompts; what it ranks
                  above a query's positive is not taken for a negative of it
    guide_margin  a passage counts so if its cosine by the guide is above the positive's less this
    matryoshka    sizes of vectors that the loss is averaged over, beside the whole one
    teacher_weight, contrastive_weight  of the two terms of the loss
    teacher_temperature  what the teacher's logits are divided by
    r_drop        weight of the divergence of two passes with other dropout; of rerankers alone
    lora          rank of low-rank updates that are trained in place of the linears; 0 for none
    keep          share of the weights of the start in the result, see average.py; None is 0.5 for
                  an embedding model and 0 for a reranker
    dropout       in place of the config's; None leaves it
    chunk_tokens  tokens whose graph is in memory at a time; None takes what suits the device
    precision     of the products: "float32", "bfloat16" or "float16" (autocast), or "float64". None
                  is "bfloat16" on a CPU that multiplies in it twice as fast and on a GPU that has
                  it, else "float32"
    seed          of everything that is drawn
    save_every    steps after which all is safe on the disk
    evaluate_every  steps after which held-out pairs are ranked; None is once an epoch
    """

    epochs: int = 2
    steps: int | None = None
    batch_size: int = 64
    negatives: int = 7
    learning_rate: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    temperature: float = 0.01
    symmetric: bool = False
    mixed: bool = False
    token_table: TokenTable | None = None
    guide: str | None = None
    guide_margin: float = 0.0
    matryoshka: tuple[int, ...] = ()
    teacher_weight: float = 0.0
    contrastive_weight: float = 1.0
    teacher_temperature: float = 1.0
    r_drop: float = 0.0
    lora: int = 0
    keep: float | None = None
    dropout: float | None = None
    chunk_tokens: int | None = None
    precision: str | None = None
    seed: int = 0
    save_every: int = 200
    evaluate_every: int | None = None

    def __post_init__(self) -> None:
        """ValueError for what cannot be, by the name of the setting."""
        for name in ("epochs", "batch_size", "save_every"):
            self._least(name, 1)
        for name in ("steps", "evaluate_every", "chunk_tokens"):
            if getattr(self, name) is not None:
                self._least(name, 1)
        for name in (
            "negatives", "warmup", "weight_decay", "clip", "teacher_weight", "contrastive_weight",
            "r_drop", "lora", "seed",
        ):  # fmt: skip
            self._least(name, 0)
        for name in ("temperature", "teacher_temperature", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value}, expected a number above 0")
        if self.token_table not in (None, "frozen", "rows", "dense"):
            raise ValueError(f"token_table is {self.token_table!r}, expected frozen, rows or dense")
        if self.precision not in (None, "float32", "bfloat16", "float16", "float64"):
            raise ValueError(
                f"precision is {self.precision!r}, expected float32, bfloat16, float16 or float64"
            )
        if not self.teacher_weight + self.contrastive_weight > 0:
            raise ValueError("teacher_weight and contrastive_weight are both 0; nothing is trained")
        for name in ("dropout", "keep"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is {value}, expected a number from 0 to below 1")

        self._check_used()

    def _check_used(self) -> None:
        """ValueError for a setting that would do nothing beside the others."""
        for name, used, what in (
            ("guide_margin", self.guide, "guide is not given"),
            ("guide", self.contrastive_weight, "contrastive_weight is 0"),
            ("teacher_temperature", self.teacher_weight, "teacher_weight is 0"),
            ("token_table", self.token_table != "dense" or not self.lora, "lora trains updates"),
        ):
            if getattr(self, name) != getattr(Settings, name) and not used:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, which does nothing: {what}; leave it out"
                )

    def resolved(
        self, reranker: bool, device: str, hidden_size: int, fastest: str = "float32"
    ) -> "Settings":
        """These settings with what None stands for, on this type of device.

        fastest  the precision in which the kernels train fastest there
        """
        table: TokenTable = "frozen" if device == "cpu" or self.lora else "dense"
        return replace(
            self,
            token_table=self.token_table or table,
            keep=KEEP * (not reranker) if self.keep is None else self.keep,
            learning_rate=self.rate_for(hidden_size),
            precision=self.precision or fastest,
        )

    def _least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if not least <= value < float("inf"):
            raise ValueError(f"{name} is {value}, expected {least} or more")

    def rate_for(self, hidden_size: int) -> float:
        """The highest learning rate of a model of this size."""
        if self.learning_rate is not None:
            return self.learning_rate
        return next((rate for size, rate in LEARNING_RATES if hidden_size <= size), 3e-5)

    def rate_at(self, step: int, steps: int, highest: float) -> float:
        """The learning rate of a step, counted from 0."""
        warmup = round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
        if step < warmup:
            return highest * (step + 1) / (warmup + 1)
        return highest * (steps - step) / max(1, steps - warmup)
