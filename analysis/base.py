"""The interface of all analyses: a circuit, a frozen model and a task in; findings out.

How to write an analysis
------------------------
1. Write the mathematics as plain functions on tensors (`tensor in, tensor out`), so that anyone can
   use them without a circuit, and test them on planted data.
2. Add one file here for the question, with a frozen dataclass of its options::

       @dataclass(frozen=True)
       class LabelBias(Analysis):
           '''How much do the heads lean towards the majority label?'''

           prompts: int = 256
           name: ClassVar[str] = "bias"
           question: ClassVar[str] = "Do the heads lean towards the majority label?"

           def run(self, subject: Subject, progress: Progress) -> Findings:
               examples = subject.examples(self.prompts, "bias", split="train")
               ...
               return Findings(
                   scalars=mean_interval(hits, subject.seed).to_metrics("accuracy"),
                   tables=(Table("heads", ("head", "bias"), rows, "One row per head."),),
                   pictures=(Picture("bias", "Bias by head.", partial(draw, rows)),),
                   sentences=("The heads prefer the majority label in 61 % of the prompts.",),
               )

3. Add `conf/analysis/bias.yaml` (`_target_`, every option with its default and a comment), and one
   line to the defaults of `conf/analysis/all.yaml`.
4. Raise `NotApplicable` where the task or the model gives the question no meaning: `analysis=all`
   then leaves it out and tells why.

An analysis knows the heads of a circuit and nothing of how they were found.  Prompts come from
`subject.examples(n, use)`, where every use has a random stream of its own: what is fitted on one
use is scored on another.  Task means hang on the subject and are computed once; `head_spaces.py`
makes subspaces of them.  `prompting.py` runs prompts in chunks and edits heads, `reading.py` reads
attention and values at the last token, `value_maps.py` and `identity.py` know what a head reads,
`resampling.py` gives intervals, `drawing.py` the look of the pictures.

Scalars are flat floats; `Estimate.to_metrics(key)` gives a figure with its interval and n.  Tables
become csv, pictures png and svg, scalars `summary.json`; W&B and the report take the same object,
so an analysis writes no file itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from headloc.errors import HeadlocError
from headloc.files import jsonable
from headloc.heads import HeadId
from headloc.randomness import stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from headloc.circuit import Circuit
    from headloc.lm.frozen import FrozenLM
    from headloc.objectives.task_means import TaskMeans
    from headloc.tasks import Example, TaskFamily
    from headloc.tasks.family import Split

    from .mean_blocks import MeanBlocks

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""

Cell = str | int | float | bool | None


class NotApplicable(HeadlocError):
    """The question has no meaning for this task or model; the message says why."""


@dataclass(frozen=True)
class Subject:
    """What is analysed.

    Attributes:
        circuit: the heads, with their provenance.
        lm: the frozen model.
        task: the task family.
        seed: seed of the analysis; every use of chance has its own stream under it.
        mean_prompts: few-shot prompts per task for the shared task means, at least 2.
    """

    circuit: Circuit
    lm: FrozenLM
    task: TaskFamily
    seed: int = 0
    mean_prompts: int = 100

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """The circuit's heads, sorted."""
        return tuple(sorted(self.circuit.heads))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of all tasks, those for training first."""
        return (*self.task.train, *self.task.held_out)

    @cached_property
    def blocks(self) -> MeanBlocks:
        """Mean few-shot outputs of the circuit's heads at the last prompt token, task by task.

        Estimated on prompts that nothing is scored on, in blocks, so that splits of the data and
        bootstrap intervals need no further pass.
        """
        from .mean_blocks import estimate_blocks

        return estimate_blocks(self)

    @cached_property
    def means(self) -> TaskMeans:
        """The same for every head of the model, as means alone."""
        from headloc.objectives.task_means import estimate_task_means

        return estimate_task_means(
            self.lm, self.task, self.tasks, prompts=self.mean_prompts, seed=self.seed
        )

    def examples(
        self, n: int, use: str, *, split: Split = "train", shots: int | None = None
    ) -> list[Example]:
        """Draw n fresh examples of a split, the tasks taking turns.

        Args:
            n: number of examples.
            use: what they are for; another use gives other examples.
            split: train or held_out tasks.
            shots: demonstrations (the task's own number when None).
        """
        rng = stream(self.seed, "analysis", use, split)
        return self.task.draw(n, rng, split=split, shots=shots, items="score")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under named columns, saved as NAME.csv."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"A row of table {self.name!r} has not {len(self.columns)} cells.")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, drawn when it is saved, in png and svg.

    Attributes:
        name: file name without suffix.
        caption: what is shown, in a sentence or two.
        draw: makes the figure (`matplotlib.figure.Figure`, never pyplot).
    """

    name: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True, slots=True)
class Findings:
    """What an analysis found.

    Attributes:
        scalars: flat figures, intervals as KEY, KEY/low, KEY/high and KEY/n.
        tables: tables.
        pictures: pictures.
        sentences: what is found, in plain words with figures, the most important first.
        circuit: heads that the analysis has found, saved as circuit/ beside the rest.
    """

    scalars: Mapping[str, float]
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    sentences: tuple[str, ...] = field(default=())
    circuit: Circuit | None = None


class Analysis(ABC):
    """One question asked of a circuit; subclasses are frozen dataclasses of their options."""

    name: ClassVar[str]
    question: ClassVar[str]

    @abstractmethod
    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Answer the question.

        Raises:
            NotApplicable: when it has no meaning for the subject.
        """

    def options(self) -> dict[str, Any]:
        """Return the options, json-able."""
        return jsonable(asdict(self)) if is_dataclass(self) else {}


def require_heads(subject: Subject) -> None:
    """Refuse a circuit without heads.

    Raises:
        NotApplicable: when it is empty.
    """
    if not subject.heads:
        raise NotApplicable("The circuit holds no heads, so there is nothing to analyse.")


def require_demonstrations(subject: Subject, least: int = 1) -> None:
    """Refuse a task with too few demonstrations per prompt.

    Raises:
        NotApplicable: naming the number.
    """
    if subject.task.shots < least:
        raise NotApplicable(
            f"This analysis needs prompts with {least} demonstrations or more; the task has "
            f"task.shots={subject.task.shots}."
        )
