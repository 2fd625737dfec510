"""The exact top-k search over feed-forward neurons, against reading every one in the vocabulary.

Both name the same neurons and give the same scores, which is checked before they are timed.  What
the search saves grows with neurons times vocabulary, so it is measured at a vocabulary of 32,000:
on the model at hand where it has as many tokens, else on a random Llama that has.
"""

from __future__ import annotations

import torch

from headloc.bench.comparisons import Clock, Note
from headloc.bench.result import Bar, Measured
from headloc.bench.shapes import Shape, random_lm
from headloc.bench.steps import Material
from headloc.bench.timing import ratio
from headloc.errors import HeadlocError
from headloc.lm.batch import EncodedPrompt, collate
from headloc.lm.frozen import FrozenLM
from headloc.objectives.prompts import Progress
from headloc.randomness import stream

LEAST = 20.0
TOP = 10
VOCABULARY = 32_000
_ENOUGH = 30_000
_TURNS = 3
_TOLERANCE = 1e-4
_TOLERANCE_HALF = 2e-2
_SHAPE = Shape(
    "llama", 6, 8, 256, VOCABULARY, {"num_key_value_heads": 4, "intermediate_size": 1024}
)


@torch.no_grad()
def top_neurons(made: Material, clock: Clock, progress: Progress) -> list[Measured]:
    """Compare the search with the full computation on one prompt.

    Args:
        made: the model with its task.
        clock: how to time.
        progress: called with (milliseconds passed, milliseconds in all).
    """
    from headloc.analysis import top_neurons as search
    from headloc.analysis.candidates import mlp_candidates
    from headloc.analysis.stream_reading import read_parts
    from headloc.analysis.unembedding import readout_of

    lm = _model(made.lm, made.seed, clock.note)
    rng = stream(made.seed, "bench", "top neurons")
    ids = tuple(int(i) for i in rng.integers(lm.vocab_size, size=12))
    batch = collate([EncodedPrompt(ids[:-1], ids[-1:], (0,) * 11)], lm.pad_id).to(lm.device)
    reading = read_parts(lm, batch)
    readout = readout_of(lm, reading, batch.target_BJ[:, 0])
    banks = mlp_candidates(lm, reading)
    if not banks:
        clock.note("  skipped: the neurons of this model cannot be told apart")
        return []
    fast = search.top_neurons(readout, banks, TOP)
    full = search.full_top_neurons(readout, banks, TOP)
    half = lm.dtype in (torch.bfloat16, torch.float16)
    gap = float((fast.score_Bk - full.score_Bk).abs().max())
    if not gap <= (_TOLERANCE_HALF if half else _TOLERANCE) * float(full.score_Bk.abs().max()):
        raise HeadlocError(
            f"The search and the full computation differ by {gap:.3g} nats, so their times cannot "
            "be compared. This is a fault of headloc: please report the model and the command."
        )
    arms = {
        "search": lambda: search.top_neurons(readout, banks, TOP),
        "every_neuron": lambda: search.full_top_neurons(readout, banks, TOP),
    }
    turns = min(_TURNS, clock.settings.repetitions)
    timings = clock.time(made, arms, progress, turns=turns)
    value = ratio(timings["every_neuron"], timings["search"], clock.settings.seed)
    says = f"the {TOP} best of {full.total:,} neurons: every neuron read over the exact search"
    sizes = {
        "measured_on": lm.source.name, "neurons": full.total, "rescored": fast.rescored,
        "vocabulary": lm.vocab_size, "width": lm.width, "largest_difference": gap,
    }  # fmt: skip
    bar = Bar("at least", LEAST)
    return [Measured.of_times("top_neurons", value, says, timings, bar, **sizes)]


def _model(lm: FrozenLM, seed: int, note: Note) -> FrozenLM:
    if lm.vocab_size >= _ENOUGH:
        return lm
    note(f"  on a random Llama with a vocabulary of {VOCABULARY:,}")
    return random_lm(_SHAPE, name="llama_vocabulary_32000", seed=seed, device=lm.device)
