"""Refinement from a selected head set to its main heads and the verdict table.

    dose scan -> significant and main heads -> AIE and residual-stream rivals -> table -> sizes

The random streams keep three things apart: what is chosen by scanning ("selection", "refine"), what
AIE is measured on ("aie"), and what is finally scored ("test", "sizes").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from headloc.baselines.aie import IndirectEffects, indirect_effects, shuffled_examples
from headloc.errors import CircuitError, HeadlocError, TaskError
from headloc.evaluation.scoring import score
from headloc.heads import HeadId
from headloc.lm.ledger import TokenLedger
from headloc.objectives import FunctionVector, InPlace, Objective, PromptSet
from headloc.objectives.mean_cache import MeanCache
from headloc.objectives.task_means import TaskMeans, estimate_task_means
from headloc.randomness import stream
from headloc.refinement.contexts import make_contexts
from headloc.refinement.dose_scan import ScanCost, scan_cost, scan_doses
from headloc.refinement.injection import Insertion
from headloc.refinement.residual import best_layer, depth, residual_means
from headloc.refinement.result import Refinement, check_refinable
from headloc.refinement.scorer import HeadSets, Scorer
from headloc.refinement.settings import RefineSettings
from headloc.refinement.significance import assess
from headloc.refinement.size_curve import SizeCurve, distinct, score_sizes
from headloc.refinement.table import SplitTable, score_split
from headloc.refinement.vectors import HeadVectors
from headloc.stages import Stages, silent
from headloc.tasks import Example, Split, TaskFamily
from headloc.tasks.different import draw_different

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


def refine(
    lm: FrozenLM,
    task: TaskFamily,
    objective: Objective,
    heads: Sequence[HeadId],
    *,
    scores: Tensor | None = None,
    settings: RefineSettings | None = None,
    seed: int = 0,
    stages: Stages = silent,
) -> Refinement:
    """Refine a selected head set.

    Args:
        lm: the frozen model.
        task: the task family.
        objective: the prepared function vector.
        heads: the selected heads.
        scores: what all heads were ranked by in training [A], to be compared with AIE at every
            size; None leaves that out.
        settings: sizes.
        seed: everything random follows from it.
        stages: shows the progress of the long steps.

    Raises:
        CircuitError: when the objective is no function vector or there are no heads.
        HeadlocError: when the model answers no few-shot prompt of the task.
        TaskError: when labels cannot be shuffled, or a task has too few items.
    """
    check_refinable(objective.describe(), heads)
    if not isinstance(objective, FunctionVector):
        raise CircuitError(f"{type(objective).__name__} is no function vector.")
    work = _Work(
        lm, task, objective, scores, settings or RefineSettings(), seed, stages, TokenLedger()
    )
    work.check()
    return work.run(tuple(lm.layout.indices(heads)))


@dataclass(frozen=True, slots=True)
class _Work:
    """The parts of one refinement and its steps."""

    lm: FrozenLM
    task: TaskFamily
    objective: FunctionVector
    scores: Tensor | None
    settings: RefineSettings
    seed: int
    stages: Stages
    ledger: TokenLedger

    def check(self) -> None:
        """Refuse what the task cannot give before any work is done."""
        self.task.check_items(items="fit")
        self.task.check_items(items="score")
        if not self.settings.aie_prompts:
            return
        try:
            shuffled_examples(self.task, seed=self.seed, prompts=self.settings.aie_prompts)
            for split in self.splits().values():
                rng = stream(self.seed, f"test-{split}", "shuffled")
                for example in self.draw("test", self.settings.prompts, split):
                    self.task.shuffled(example, rng)
        except TaskError as error:
            raise TaskError(
                f"{error}\nOr leave AIE and the shuffled context out with aie_prompts=0."
            ) from None

    def run(self, selected: tuple[int, ...]) -> Refinement:
        vectors = HeadVectors.of(self.objective, self.lm)
        insertion = Insertion.of(self.objective, self.lm)
        prompts, clean = self.scan_prompts()
        with self.ledger.counting(self.lm, "dose_scan"), self.stages("dose scan") as progress:
            scan = scan_doses(
                self.lm,
                vectors,
                insertion,
                prompts,
                selected,
                doses=self.settings.doses,
                rows_per_pass=self.settings.rows_per_pass,
                progress=progress,
            )
        significance = assess(scan, clean)
        aie = self.measure_aie()
        theta_KLD, layer, accuracies = self.residual(prompts)
        sets = HeadSets.of(self.lm.layout, selected, significance, aie)
        scorer = Scorer(
            lm=self.lm,
            vectors=vectors,
            insertion=insertion,
            in_place=self.ablation(),
            theta_KLD=theta_KLD,
            residual_layer=layer,
            random_sets=self.settings.random_sets,
            rows_per_pass=self.settings.rows_per_pass,
            seed=self.seed,
        )
        return Refinement(
            insertion=insertion,
            scan=scan,
            cost=self.cost(insertion, prompts, len(selected)),
            significance=significance,
            sets=sets,
            aie=aie,
            residual_layer=layer,
            residual_accuracies=tuple(accuracies),
            tables={name: self.table(scorer, sets, name) for name in self.splits()},
            sizes=self.size_curves(scorer, aie),
            ledger=self.ledger,
            settings=self.settings,
            seed=self.seed,
        )

    def splits(self) -> dict[str, Split]:
        """Return the splits of the table by their names."""
        splits: dict[str, Split] = {"seen": "train"}
        return {**splits, "held_out": "held_out"} if self.task.held_out else splits

    def draw(self, use: str, size: int, split: Split) -> list[Example]:
        """Draw fresh prompts for the final scores: different without demonstrations, and not those
        of the scan.
        """
        key = self.objective.prompt_key
        scanned = {key(example) for example in self.scan_examples()}
        rng = stream(self.seed, use, split)
        return draw_different(
            self.task, size, rng, split=split, items="score", key=key, without=scanned
        )

    def scan_examples(self) -> list[Example]:
        """Draw what choices are made on, every zero-shot prompt once."""
        rng = stream(self.seed, "selection", "refine")
        size, key = self.settings.scan_prompts, self.objective.prompt_key
        return draw_different(self.task, size, rng, split="train", items="fit", key=key)

    def scan_prompts(self) -> tuple[PromptSet, float]:
        """Return the prompts that choices are made on, and their few-shot accuracy."""
        examples = self.scan_examples()
        with self.ledger.counting(self.lm, "prompts"), self.stages("prompts of the scan") as do:
            prompts = self.objective.prompt_set(
                self.lm, self.task, examples, seed=self.seed, use="selection-refine", progress=do
            )
            clean = score(self.objective, self.lm, prompts, None).accuracy
        batch = (prompts.reference or prompts).batch
        lengths_N = batch.mask_BT[:, : batch.prompt_columns].sum(1)
        self.ledger.prompt_tokens = float(lengths_N.float().mean())
        if clean == 0.0:
            raise HeadlocError(
                f"{self.lm.source.name!r} answers none of {len(prompts)} few-shot prompts of task "
                f"{self.task.name!r}, so there is nothing to refine."
            )
        return prompts, clean

    def measure_aie(self) -> IndirectEffects | None:
        """Measure AIE, unless it is left out."""
        if not self.settings.aie_prompts:
            return None
        means = self.raw_means()
        with (
            self.ledger.counting(self.lm, "aie"),
            self.stages("average indirect effects") as progress,
        ):
            return indirect_effects(
                self.lm,
                self.task,
                means,
                seed=self.seed,
                prompts=self.settings.aie_prompts,
                rows_per_pass=self.settings.rows_per_pass,
                progress=progress,
            )

    def raw_means(self) -> TaskMeans:
        """Return raw few-shot means: AIE puts them in the place of head outputs."""
        objective = self.objective
        if objective.means is not None and objective.relative_to == "none":
            return objective.means
        cache = None if objective.cache_dir is None else MeanCache(objective.cache_dir)
        with self.ledger.counting(self.lm, "means"), self.stages("raw task means") as progress:
            return estimate_task_means(
                self.lm,
                self.task,
                self.task.train,
                prompts=objective.prompts_per_task,
                seed=self.seed,
                cache=cache,
                progress=progress,
            )

    def residual(self, prompts: PromptSet) -> tuple[Tensor, int, list[float]]:
        """Return the mean residual streams and the layer they do best at on the scan's prompts."""
        names = self.objective.means.tasks if self.objective.means is not None else ()
        with (
            self.ledger.counting(self.lm, "residual"),
            self.stages("residual-stream reference") as progress,
        ):
            theta_KLD = residual_means(
                self.lm,
                self.task,
                names,
                prompts=self.objective.prompts_per_task,
                seed=self.seed,
                progress=progress,
            )
            layer, accuracies = best_layer(self.lm, prompts, theta_KLD)
        return theta_KLD, layer, accuracies

    def ablation(self) -> InPlace:
        """Return the prepared ablation of few-shot prompts to cross-task means."""
        in_place = InPlace(off_value="mean")
        with self.ledger.counting(self.lm, "means"), self.stages("mean head outputs") as progress:
            in_place.prepare(
                self.lm,
                self.task,
                seed=self.seed,
                prompts=self.settings.mean_prompts,
                progress=progress,
            )
        return in_place

    def table(self, scorer: Scorer, sets: HeadSets, name: str) -> SplitTable:
        """Score one split."""
        split = self.splits()[name]
        title = f"table of {name.replace('_', '-')} tasks"
        with self.ledger.counting(self.lm, "table"), self.stages(title) as progress:
            contexts = make_contexts(
                self.lm,
                self.task,
                self.objective,
                scorer.in_place,
                self.draw("test", self.settings.prompts, split),
                seed=self.seed,
                use=f"test-{split}",
                shuffle=self.settings.aie_prompts > 0,
                progress=progress,
            )
            return score_split(scorer, contexts, sets, progress)

    def size_curves(self, scorer: Scorer, aie: IndirectEffects | None) -> dict[str, SizeCurve]:
        """Compare the learned ranking with AIE's at every size, split by split."""
        if self.scores is None or aie is None or not self.settings.size_prompts:
            return {}
        found = {}
        for name, split in self.splits().items():
            title = f"sizes, {name.replace('_', '-')} tasks"
            with self.ledger.counting(self.lm, "sizes"), self.stages(title) as progress:
                rng = stream(self.seed, "sizes", split)
                count = self.settings.size_prompts
                examples = distinct(self.task.draw(count, rng, split=split, items="score"))
                prompts = self.objective.prompt_set(
                    self.lm, self.task, examples, seed=self.seed, use=f"sizes-{split}"
                )
                curve = score_sizes(scorer, prompts, self.scores, aie.order(), progress)
            if curve is not None:
                found[name] = curve
        return found

    def cost(self, insertion: Insertion, prompts: PromptSet, heads: int) -> ScanCost:
        """State what the scan cost."""
        return scan_cost(
            heads=heads,
            doses=self.settings.doses,
            prompts=len(prompts),
            prompt_columns=prompts.batch.prompt_columns,
            answer_columns=prompts.batch.target_BJ.shape[1],
            layer=insertion.layer if prompts.stream is not None else 0,
            layers=depth(self.lm),
        )
