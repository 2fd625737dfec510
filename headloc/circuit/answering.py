"""Which columns of a pass predict an answer token, when a model is called freely.

A circuit with positions="last" was found, and is scored, with its gates on at the columns that
predict an answer token: the last prompt token, and every answer token before the final one
(`headloc.lm.batch`).  Free calls follow the same rule:

* In `generate()` the prompt is what `generate()` was given, and every token it makes continues the
  answer.  So the last prompt token and all new tokens are gated, in whatever passes they run: one
  token at a time behind a key/value cache, the whole text again without one, a prompt in chunks, or
  several proposed tokens at once.
* A direct call without a cache runs a prompt, which ends at its last column (or some columns
  earlier, with the answer's tokens behind it); calls that go on from its cache continue the answer.
* A direct call that goes on from a cache made elsewhere is the rest of a prompt.

Shape legend: B rows, T columns of the current pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from headloc.errors import CircuitError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AnswerColumns:
    """Follows the passes of a model and knows where in each the answer is predicted.

    Args:
        answer_tokens: columns of a direct call that predict an answer token.

    Attributes:
        first: first such column of the current pass; T when it has none.
        starts: whether that column is the last prompt token.
    """

    def __init__(self, answer_tokens: int = 1) -> None:
        self.first = 0
        self.starts = True
        self._answer_tokens = answer_tokens
        self._prompt: int | None = None
        self._generating = False

    @contextmanager
    def generating(self, prompt_columns: int) -> Iterator[None]:
        """Know that `generate()` runs, and how long its prompt is."""
        before = (self._prompt, self._generating)
        self._prompt, self._generating = prompt_columns, True
        try:
            yield
        finally:
            self._prompt, self._generating = before

    def enter(self, columns: int, past: int, mask: Tensor | None) -> None:
        """Take down a pass.

        Args:
            columns: T.
            past: columns before them in the cache.
            mask: its attention mask `[B, past + T]`, where there is one of that form.

        Raises:
            CircuitError: when the pass has fewer columns than answer tokens, or prompts are padded
                on the right.
        """
        if not self._generating and (self._prompt is None or past < self._prompt):
            self._prompt = past + columns - self._answer_tokens + 1
        # Always set by now: by `generating`, or just before.
        start = (self._prompt or 0) - 1 - past
        if start < 0 and not past:
            raise CircuitError(
                f"answer_tokens={self._answer_tokens} leaves no prompt in a pass of {columns} "
                "tokens. Give prompt and answer together."
            )
        self.first, self.starts = max(0, start), start >= 0
        if 0 <= start < columns and mask is not None and not bool(mask[:, past + start].all()):
            raise CircuitError(
                "The prompts are padded on the right, so their last tokens stand in different "
                "columns and some of the gated ones are padding. Pad on the left: "
                'tokenizer.padding_side = "left".'
            )


@contextmanager
def following(model: PreTrainedModel, columns: AnswerColumns) -> Iterator[None]:
    """Keep `columns` informed about every pass and every `generate()` of a model."""
    signature = inspect.signature(model.forward)

    def before_pass(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = signature.bind_partial(*args, **kwargs).arguments
        given = {**given.pop("kwargs", {}), **given}
        if given.get("cu_seq_lens_q") is not None:
            raise CircuitError(
                "Several prompts run in one row here (packed sequences, generate_batch), where the "
                "last token of each cannot be told. Give every prompt a row of its own."
            )
        width, past = _columns(given), _past(given)
        columns.enter(width, past, _flat_mask(given, past + width))

    with ExitStack() as stack:
        handle = model.register_forward_pre_hook(before_pass, with_kwargs=True)
        stack.callback(handle.remove)
        stack.enter_context(_announced(model, columns))
        yield


@contextmanager
def _announced(model: PreTrainedModel, columns: AnswerColumns) -> Iterator[None]:
    """Let `model.generate` tell how long its prompt is, before any pass of it runs."""
    original, attributes = model.generate, vars(model)
    earlier = attributes.get("generate")

    @wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        with columns.generating(_prompt_columns(args, kwargs)):
            return original(*args, **kwargs)

    attributes["generate"] = generate
    try:
        yield
    finally:
        if earlier is None:
            del attributes["generate"]
        else:
            attributes["generate"] = earlier


def _prompt_columns(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return the columns of what `generate()` was given; it starts from BOS without a prompt."""
    named = [kwargs.get(name) for name in ("inputs_embeds", "inputs", "input_ids")]
    for given in (named[0], *args[:1], *named[1:]):
        if isinstance(given, Tensor) and given.ndim >= 2 and given.shape[1]:
            return given.shape[1]
    return 1


def _columns(given: Mapping[str, Any]) -> int:
    for name in ("input_ids", "inputs_embeds"):
        if isinstance(given.get(name), Tensor):
            return int(given[name].shape[1])
    raise CircuitError("A circuit applies to passes on input_ids or inputs_embeds; give one.")


def _past(given: Mapping[str, Any]) -> int:
    """Return how many columns stand before those of the pass."""
    cache = given.get("past_key_values")
    if cache is None:
        return 0
    if not hasattr(cache, "get_seq_length"):
        raise CircuitError(
            f"past_key_values is a {type(cache).__name__}, not a cache of transformers "
            "(DynamicCache and the like), so it does not tell how many tokens it holds."
        )
    return int(cache.get_seq_length())


def _flat_mask(given: Mapping[str, Any], columns: int) -> Tensor | None:
    mask = given.get("attention_mask")
    fits = isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == columns
    return mask if fits else None
