"""Run every method on the same prompts, and score what it found on fresh ones.

Prompts of search, selection, truth and test come from random streams of their own.  The off-values
and the test prompts are the same for all seeds and methods; search and selection prompts follow the
seed.

Shapes: A heads in flat order, N prompts.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from headloc.bank.ranking import sizes_of
from headloc.baselines.chance import layer_matched
from headloc.baselines.found import choose, circuit_of
from headloc.baselines.method import HeadRanking, HeadSet, Method
from headloc.baselines.problem import SearchProblem
from headloc.compare.measures import shared_sizes
from headloc.compare.optimum import Optimum, find_optimum
from headloc.compare.outcomes import SetOutcomes, complement, score_sets
from headloc.compare.settings import CompareSettings
from headloc.errors import HeadlocError
from headloc.evaluation.subsets import SubsetScorer
from headloc.lm.ledger import TokenLedger
from headloc.objectives.prompts import Progress
from headloc.randomness import stream
from headloc.stages import Stages, silent
from headloc.tasks.different import draw_different

if TYPE_CHECKING:
    from headloc.circuit import Circuit
    from headloc.heads import HeadLayout
    from headloc.lm.frozen import FrozenLM
    from headloc.objectives import Objective, PromptSet
    from headloc.tasks import TaskFamily
    from headloc.tasks.checks import Items
    from headloc.tasks.family import Split

MATCHED = "random_layers"
"""The control with as many heads in each layer as the first method."""


@dataclass(frozen=True)
class Found:
    """What one method found under one seed.

    Attributes:
        method: name of the method.
        seed: the seed.
        ranking: its ranking, with a set for every size.
        chosen: the smallest set that keeps enough on the selection prompts.
        cost: forward-equivalents of all that the ranking takes: `search_cost`, and the prefixes of
            the search prompts and the off-values where the method uses them.
        search_cost: forward-equivalents of the method itself, behind prefixes and off-values.
        selection_cost: forward-equivalents of choosing the size, prefixes included.
        seconds: wall time of the method itself.
        circuit: the chosen set as a circuit; None for a control.
    """

    method: str
    seed: int
    ranking: HeadRanking
    chosen: HeadSet
    cost: float
    search_cost: float
    selection_cost: float
    seconds: float
    circuit: Circuit | None = None


@dataclass(frozen=True)
class UnderOffValue:
    """A comparison under one off-value.

    Attributes:
        off_value: what a closed head puts out.
        found: by method and then by seed, in the order of the methods.
        optimum: the best sets.
        optimum_cost: forward-equivalents of finding them.
        test: outcomes on the test prompts.
        held_out: outcomes of chosen sets on held-out tasks, where there are any.
        shared_cost: forward-equivalents of the off-values and of the prefixes of all search
            prompts, first seed.
        patching_cost: forward-equivalents of patching every head exactly on the search prompts,
            the shared cost and (A + 1) N passes behind it: the budget of the comparison.
    """

    off_value: str
    found: Mapping[str, tuple[Found, ...]]
    optimum: Optimum
    optimum_cost: float
    test: SetOutcomes
    held_out: SetOutcomes | None
    shared_cost: float
    patching_cost: float


@dataclass(frozen=True)
class Comparison:
    """Everything a comparison measured.

    Attributes:
        layout: the heads.
        settings: its settings.
        first: name of the method that the others are compared with.
        sizes: sizes at which all methods are scored.
        results: by off-value.
    """

    layout: HeadLayout
    settings: CompareSettings
    seed: int
    first: str
    sizes: tuple[int, ...]
    results: tuple[UnderOffValue, ...]


def compare(
    lm: FrozenLM,
    task: TaskFamily,
    methods: Mapping[str, Method],
    objectives: Mapping[str, Objective],
    settings: CompareSettings | None = None,
    *,
    seed: int = 0,
    stages: Stages = silent,
) -> Comparison:
    """Compare methods of finding heads.

    Args:
        lm: the frozen model.
        task: the task family.
        methods: by the name under which they are reported; the first is compared with the others.
        objectives: the intervention by its off-value; prepared here.
        settings: sizes of everything.
        seed: the first seed; the others follow it.
        stages: shows the progress of the long steps.

    Raises:
        HeadlocError: without methods, or when the model answers none of the test prompts.
    """
    if not methods:
        raise HeadlocError("There is nothing to compare: name at least one method (only=[...]).")
    settings = settings or CompareSettings()
    sizes = tuple(sorted({*sizes_of(lm.layout.total), *shared_sizes(lm.layout.total).values()}))
    results = tuple(
        _UnderOne(lm, task, methods, off, objective, settings, seed, sizes, stages).run()
        for off, objective in objectives.items()
    )
    return Comparison(lm.layout, settings, seed, next(iter(methods)), sizes, results)


@dataclass(frozen=True, slots=True)
class _Given:
    """What the methods are given under one seed, in forward-equivalents.

    Attributes:
        prompt_tokens: mean tokens of a search prompt, the unit of cost.
        search: prefixes of the search prompts.
        selection: prefixes of the selection prompts.
        off_values: estimating the off-values.
    """

    prompt_tokens: float
    search: float
    selection: float
    off_values: float = 0.0


@dataclass(frozen=True)
class _UnderOne:
    """The work under one off-value."""

    lm: FrozenLM
    task: TaskFamily
    methods: Mapping[str, Method]
    off: str
    objective: Objective
    settings: CompareSettings
    seed: int
    sizes: tuple[int, ...]
    stages: Stages
    fitted: set[Hashable] = field(default_factory=set)
    """Prompts that something was chosen on so far (`Objective.prompt_key`)."""

    def run(self) -> UnderOffValue:
        means = TokenLedger()
        with means.counting(self.lm, "means"), self._stage("off-values") as progress:
            self.objective.prepare(
                self.lm, self.task, seed=self.seed, prompts=self.settings.mean_prompts,
                progress=progress,
            )  # fmt: skip
        found: dict[str, list[Found]] = {name: [] for name in self.methods}
        budgets = []
        for turn in range(self.settings.seeds):
            problem, given = self._problem(self.seed + 1000 * turn)
            given = replace(given, off_values=means.tokens() / given.prompt_tokens)
            budgets.append((given, _patching_tokens(problem) / given.prompt_tokens))
            for name, method in self.methods.items():
                found[name].append(self._find(name, method, problem, given))
        self._add_matched(found)
        given, patching = budgets[0]
        ledger = TokenLedger(prompt_tokens=given.prompt_tokens)
        with ledger.counting(self.lm, "optimum"):
            optimum = self._optimum(found)
        shared = given.off_values + given.search
        return UnderOffValue(
            self.off, {name: tuple(own) for name, own in found.items()}, optimum,
            ledger.forward_equivalents(), self._score(found, optimum), self._held_out(found),
            shared, shared + patching,
        )  # fmt: skip

    def _problem(self, seed: int) -> tuple[SearchProblem, _Given]:
        """Return what the methods search under one seed, and what that cost."""
        ledger = TokenLedger()
        with self._stage(f"prompts, seed {seed}"):
            with ledger.counting(self.lm, "search"):
                search = self._draw(seed, "train", self.settings.search_prompts)
            with ledger.counting(self.lm, "selection"):
                selection = self._draw(seed, "selection", self.settings.selection_prompts)
        ledger.prompt_tokens = _prompt_tokens(search)
        costs = (ledger.forward_equivalents(use) for use in ("search", "selection"))
        problem = SearchProblem.of(self.lm, self.task, self.objective, search, selection, seed)
        return problem, _Given(ledger.prompt_tokens, *costs)

    def _find(self, name: str, method: Method, problem: SearchProblem, given: _Given) -> Found:
        ledger = TokenLedger(prompt_tokens=given.prompt_tokens)
        start = time.monotonic()
        with (
            ledger.counting(self.lm, name),
            self._stage(f"{name}, seed {problem.seed}") as progress,
        ):
            ranking = method.find(problem, progress)
        seconds = time.monotonic() - start
        with ledger.counting(self.lm, "selection"):
            chosen = choose(ranking, problem, self.settings.keep)
        own = ledger.forward_equivalents(name)
        cost = own + given.search * method.prompts_used(problem) / len(problem.search)
        if method.uses_off_values:
            cost += given.off_values
        selection = given.selection + ledger.forward_equivalents("selection")
        circuit = circuit_of(method, ranking, chosen, problem, {"cost/forward_equivalents": cost})
        return Found(name, problem.seed, ranking, chosen, cost, own, selection, seconds, circuit)

    def _add_matched(self, found: dict[str, list[Found]]) -> None:
        """Add the control whose sets have as many heads in each layer as the first method's."""
        control = []
        for own in next(iter(found.values())):
            ranking = layer_matched(own.ranking, self.lm.layout, own.seed)
            chosen = ranking.at(len(own.chosen))
            control.append(Found(MATCHED, own.seed, ranking, chosen, 0.0, 0.0, 0.0, 0.0))
        found[MATCHED] = control

    def _optimum(self, found: Mapping[str, Sequence[Found]]) -> Optimum:
        settings = self.settings
        with self._stage("truth prompts"):
            worth, rescored = (
                SubsetScorer.of(self.objective, self.lm, self._draw(self.seed, use, count))
                for use, count in (("truth", settings.truth_prompts),
                                   ("finalists", settings.finalist_prompts))
            )  # fmt: skip
        sets = {own.ranking.at(size) for many in found.values() for own in many
                for size in self.sizes}  # fmt: skip
        with self._stage("best head sets") as progress:
            return find_optimum(
                worth, rescored, beam=settings.beam, finalists=settings.finalists,
                candidates=sets, progress=progress,
            )  # fmt: skip

    def _score(self, found: Mapping[str, Sequence[Found]], optimum: Optimum) -> SetOutcomes:
        """Score every set of every method, and all heads but these, on the test prompts."""
        total = self.lm.layout.total
        sets = {own.ranking.at(size) for many in found.values() for own in many
                for size in self.sizes}  # fmt: skip
        sets |= {own.chosen for many in found.values() for own in many}
        sets |= {optimum.sets[size] for size in self.sizes if size in optimum.sets}
        sets |= {complement(own, total) for own in sets}
        with self._stage("test prompts"):
            prompts = self._draw(self.seed, "test", self.settings.test_prompts, items="score")
        with self._stage("scoring head sets") as progress:
            test = score_sets(self.objective, self.lm, prompts, sets, progress)
        if test.full == 0.0:
            raise HeadlocError(
                f"{self.lm.source.name!r} answered none of {len(prompts)} test prompts of "
                f"{self.task.name!r}, so there is nothing to compare. Use a model that can do the "
                "task, or give more task.shots."
            )
        return test

    def _held_out(self, found: Mapping[str, Sequence[Found]]) -> SetOutcomes | None:
        """Score the chosen sets on tasks that no method has seen."""
        if not self.task.held_out:
            return None
        prompts = self._draw(
            self.seed, "test", self.settings.held_out_prompts, split="held_out", items="score"
        )
        sets = {own.chosen for many in found.values() for own in many}
        return score_sets(self.objective, self.lm, prompts, {(), *sets})

    def _draw(
        self, seed: int, use: str, count: int, *, split: Split = "train", items: Items = "fit"
    ) -> PromptSet:
        rng, key = stream(seed, use, split), self.objective.prompt_key
        if items == "score":
            examples = draw_different(
                self.task, count, rng, split=split, items=items, key=key, without=self.fitted
            )
        else:
            examples = self.task.draw(count, rng, split=split, items=items)
            self.fitted.update(map(key, examples))
        return self.objective.prompt_set(
            self.lm, self.task, examples, seed=seed, use=f"{use}-{split}"
        )

    def _stage(self, name: str) -> AbstractContextManager[Progress]:
        return self.stages(f"{self.off}: {name}" if self.off else name)


def _prompt_tokens(prompts: PromptSet) -> float:
    """Return the mean length of a few-shot prompt, the unit of cost."""
    batch = (prompts.reference or prompts).batch
    return float(batch.mask_BT[:, : batch.prompt_columns].sum(1).float().mean())


def _patching_tokens(problem: SearchProblem) -> float:
    """Return the tokens of patching every head on the search prompts, behind their prefixes."""
    batch, cached = problem.search.batch, problem.search.prefix is not None
    return (problem.total + 1.0) * (batch.target_BJ if cached else batch.ids_BT).numel()
