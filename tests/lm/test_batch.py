"""Prompts become tensors in one fixed column layout."""

from __future__ import annotations

import pytest
import torch

from headloc.errors import HeadlocError
from headloc.lm import IGNORE, EncodedPrompt, Role, TokenBatch, collate

PAD = 9


def prompt(ids: list[int], answer: list[int]) -> EncodedPrompt:
    return EncodedPrompt(tuple(ids), tuple(answer), (Role.INPUT,) * len(ids))


@pytest.fixture
def batch() -> TokenBatch:
    return collate([prompt([1, 2, 3], [4, 5]), prompt([6], [7]), prompt([8, 8], [1, 2])], PAD)


def test_the_last_prompt_token_of_every_row_stands_in_one_column(batch: TokenBatch) -> None:
    assert batch.prompt_columns == 3
    assert batch.ids_BT.tolist() == [[1, 2, 3, 4], [PAD, PAD, 6, PAD], [PAD, 8, 8, 1]]
    assert batch.mask_BT.tolist() == [[1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 1, 1]]
    assert batch.target_BJ.tolist() == [[4, 5], [7, IGNORE], [1, 2]]


def test_positions_count_real_tokens_only(batch: TokenBatch) -> None:
    real = batch.mask_BT.bool()
    assert batch.position_ids_BT[real].tolist() == [0, 1, 2, 3, 0, 0, 1, 2]


def test_roles_name_the_last_prompt_token_and_the_forced_answer(batch: TokenBatch) -> None:
    i, last, answer = Role.INPUT, Role.LAST, Role.ANSWER
    assert batch.role_BT.tolist() == [
        [i, i, last, answer],
        [-1, -1, last, -1],
        [-1, i, last, answer],
    ]


def test_predicting_columns_are_one_per_answer_token(batch: TokenBatch) -> None:
    assert batch.ids_BT[:, batch.predicting].shape == batch.target_BJ.shape


def test_an_answer_of_one_token_needs_no_column_of_its_own() -> None:
    batch = collate([prompt([1, 2], [3])], PAD)
    assert batch.ids_BT.tolist() == [[1, 2]]
    assert batch.predicting == slice(1, 2)


def test_an_empty_answer_has_one_column_and_no_target() -> None:
    batch = collate([prompt([1, 2], [])], PAD)
    assert batch.ids_BT.tolist() == [[1, 2]]
    assert batch.target_BJ.tolist() == [[IGNORE]]


def test_columns_can_be_fixed_so_that_batches_match() -> None:
    batch = collate([prompt([1, 2], [3, 4])], PAD, prompt_columns=4, answer_columns=3)
    assert batch.ids_BT.tolist() == [[PAD, PAD, 1, 2, 3, PAD]]
    assert batch.target_BJ.tolist() == [[3, 4, IGNORE]]


@pytest.mark.parametrize("index", [[2, 0], torch.tensor([2, 0]), slice(None, None, 2)])
def test_rows_keep_their_order_and_their_columns(batch: TokenBatch, index: object) -> None:
    part = batch.rows(index)  # type: ignore[arg-type]
    expected = [0, 2] if isinstance(index, slice) else [2, 0]
    assert len(part) == 2
    assert torch.equal(part.ids_BT, batch.ids_BT[expected])
    assert torch.equal(part.target_BJ, batch.target_BJ[expected])
    assert part.prompt_columns == batch.prompt_columns


def test_an_empty_list_of_rows_gives_an_empty_batch(batch: TokenBatch) -> None:
    assert len(batch.rows([])) == 0


def test_to_moves_every_tensor(batch: TokenBatch) -> None:
    moved = batch.to("meta")
    tensors = (moved.ids_BT, moved.mask_BT, moved.position_ids_BT, moved.role_BT, moved.target_BJ)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.prompt_columns == batch.prompt_columns


def test_what_cannot_be_stacked_is_refused() -> None:
    with pytest.raises(HeadlocError, match="at least one prompt"):
        collate([], PAD)
    with pytest.raises(HeadlocError, match="longest prompt has 3 tokens, but prompt_columns is 2"):
        collate([prompt([1, 2, 3], [4])], PAD, prompt_columns=2)
    with pytest.raises(HeadlocError, match="answer_columns=2 or more"):
        collate([prompt([1], [4, 5])], PAD, answer_columns=1)
    with pytest.raises(HeadlocError, match="without tokens"):
        EncodedPrompt((), (1,), ())
    with pytest.raises(HeadlocError, match="2 tokens came with 1 roles"):
        EncodedPrompt((1, 2), (3,), (0,))
