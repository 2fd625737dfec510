"""Prompts as tensors: left-padded to the last prompt token, answers teacher-forced behind it.

Column layout of a batch with P prompt columns and answers of up to J tokens (T = P + J - 1):

    0 ........ P-1 | P ...... T-1
    pad, prompt    | answer tokens 0 .. J-2, pad
               ^ last prompt token of *every* row

Columns P-1 .. T-1 are the J *predicting* columns: column P-1+j predicts answer token j.

Shape legend: B rows, T columns, P prompt columns, J answer tokens (padded), V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from headloc.errors import HeadlocError

IGNORE = -100
"""Target of a predicting column that has nothing to predict (cross-entropy's ignore index)."""

RowIndex = Tensor | Sequence[int] | slice
"""Anything that picks rows of a batch or of a prefix cache."""


class Role(IntEnum):
    """What a token of a prompt is; `-1` in a batch marks padding."""

    LAST = 0
    ANSWER = 1
    BOS = 2
    PREFIX = 3
    INPUT = 4
    SEPARATOR = 5
    LABEL = 6
    END = 7
    QUERY = 8
    OTHER = 9


ROLE_LAST = Role.LAST
ROLE_ANSWER = Role.ANSWER
ROLE_PADDING = -1


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """One tokenised prompt with its answer and the role of each prompt token.

    Raises:
        HeadlocError: when the prompt is empty, or the roles are not one per prompt token.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    roles: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise HeadlocError("A prompt without tokens cannot be run. Give at least one token.")
        if len(self.roles) != len(self.prompt_ids):
            raise HeadlocError(
                f"A prompt of {len(self.prompt_ids)} tokens came with {len(self.roles)} roles. "
                "Give one role per prompt token."
            )


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """A batch of prompts with teacher-forced answers, in the layout of the module's docstring.

    Attributes:
        ids_BT: token ids.
        mask_BT: 1 on real tokens, 0 on padding.
        position_ids_BT: position of each token within its own row, 0 on padding in front.
        role_BT: `Role` of each token, -1 on padding.
        target_BJ: answer tokens, `IGNORE` on padding.
        prompt_columns: P.
    """

    ids_BT: Tensor
    mask_BT: Tensor
    position_ids_BT: Tensor
    role_BT: Tensor
    target_BJ: Tensor
    prompt_columns: int

    def __len__(self) -> int:
        return self.ids_BT.shape[0]

    @property
    def predicting(self) -> slice:
        """The J columns whose logits are scored against `target_BJ`."""
        return slice(self.prompt_columns - 1, self.ids_BT.shape[1])

    def rows(self, index: RowIndex) -> TokenBatch:
        """The same columns of some of the rows, in the order of `index`."""
        picked = as_row_index(index, self.ids_BT.device)
        return self._map(lambda tensor: tensor[picked])

    def to(self, device: torch.device | str) -> TokenBatch:
        """The batch with all its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> TokenBatch:
        return TokenBatch(
            ids_BT=change(self.ids_BT),
            mask_BT=change(self.mask_BT),
            position_ids_BT=change(self.position_ids_BT),
            role_BT=change(self.role_BT),
            target_BJ=change(self.target_BJ),
            prompt_columns=self.prompt_columns,
        )


def as_row_index(index: RowIndex, device: torch.device) -> Tensor | slice:
    """A row index that a tensor on `device` can be indexed with (a slice gives views)."""
    if isinstance(index, slice):
        return index
    if not isinstance(index, Tensor):
        # An empty list would otherwise become a float tensor, which cannot index.
        index = torch.tensor(list(index), dtype=torch.int64)
    return index.to(device)


def last_columns(logits_BTV: Tensor, columns: int) -> Tensor:
    """Return the logits of the last columns; a slice of all of them would cost a copy backward."""
    return logits_BTV if logits_BTV.shape[1] == columns else logits_BTV[:, -columns:]


def collate(
    prompts: Sequence[EncodedPrompt],
    pad_id: int,
    *,
    prompt_columns: int | None = None,
    answer_columns: int | None = None,
) -> TokenBatch:
    """Stack prompts into one batch on the CPU.

    Args:
        prompts: B encoded prompts; an empty answer gives one predicting column without a target.
        pad_id: token id written on padding; it is always masked.
        prompt_columns: P, at least the longest prompt (its length when None).
        answer_columns: J, at least the longest answer and 1 (the longest answer when None).

    Raises:
        HeadlocError: when there are no prompts, or one does not fit the columns asked for.
    """
    if not prompts:
        raise HeadlocError("A batch needs at least one prompt; none was given.")
    longest = max(len(prompt.prompt_ids) for prompt in prompts)
    P = _columns("prompt", longest, prompt_columns)
    most = max(len(prompt.answer_ids) for prompt in prompts)
    J = _columns("answer", max(1, most), answer_columns)
    rows = [_row(prompt, pad_id, P, J) for prompt in prompts]
    ids, mask, roles, targets = (list(column) for column in zip(*rows, strict=True))
    mask_BT = torch.tensor(mask, dtype=torch.int64)
    return TokenBatch(
        ids_BT=torch.tensor(ids, dtype=torch.int64),
        mask_BT=mask_BT,
        position_ids_BT=(mask_BT.cumsum(-1) - 1).clamp(min=0),
        role_BT=torch.tensor(roles, dtype=torch.int64),
        target_BJ=torch.tensor(targets, dtype=torch.int64),
        prompt_columns=P,
    )


def _row(prompt: EncodedPrompt, pad_id: int, P: int, J: int) -> tuple[list[int], ...]:
    """Token ids, mask, roles (each of T columns) and targets (J columns) of one prompt."""
    # The last answer token is only ever predicted, never an input.
    forced = prompt.answer_ids[:-1]
    front = P - len(prompt.prompt_ids)
    back = J - 1 - len(forced)
    real = len(prompt.prompt_ids) + len(forced)
    roles = [*prompt.roles[:-1], int(ROLE_LAST)] + [int(ROLE_ANSWER)] * len(forced)
    return (
        [pad_id] * front + [*prompt.prompt_ids, *forced] + [pad_id] * back,
        [0] * front + [1] * real + [0] * back,
        [ROLE_PADDING] * front + roles + [ROLE_PADDING] * back,
        [*prompt.answer_ids] + [IGNORE] * (J - len(prompt.answer_ids)),
    )


def _columns(what: str, needed: int, asked: int | None) -> int:
    """The number of columns to use: what is asked for, when everything fits into it."""
    if asked is None:
        return needed
    if asked < needed:
        raise HeadlocError(
            f"The longest {what} has {needed} tokens, but {what}_columns is {asked}. "
            f"Use {what}_columns={needed} or more."
        )
    return asked
