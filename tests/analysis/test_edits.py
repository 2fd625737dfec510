"""Projections of heads, answers of several tokens, subspace arms and steering."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headloc.analysis import subspaces_shown
from headloc.analysis.arms import Arm, group_bases
from headloc.analysis.base import NotApplicable, Subject
from headloc.analysis.features import feature_basis
from headloc.analysis.head_spaces import chosen_heads, head_spaces, reliability, resampled_means
from headloc.analysis.linear import principal_angles, principal_components
from headloc.analysis.mean_blocks import block_count
from headloc.analysis.periodic import Periodic, numbers_of
from headloc.analysis.prompting import Edit, answers, edit_heads, label_columns, prompt_chunks
from headloc.analysis.resampling import Resamples
from headloc.analysis.steering import Steering, mean_edits, rewriting
from headloc.analysis.steering_shown import Steered
from headloc.analysis.subspaces import Subspaces, projection, removal
from headloc.errors import HeadlocError
from headloc.lm.taps import read_heads
from headloc.objectives.task_means import estimate_task_means
from headloc.tasks import AddK
from tests.analysis.subjects import bundled_lm, circuit_of, quiet, tiny_subject


def test_blocks_average_to_the_mean_of_their_prompts() -> None:
    subject = tiny_subject()
    spaces, first, second = (head_spaces(subject, half) for half in (None, 0, 1))
    for space, a, b in zip(spaces, first, second, strict=True):
        torch.testing.assert_close(space.z_Kd, (a.z_Kd + b.z_Kd) / 2)
        assert space.blocks_KGd.shape[:2] == (14, 4)
        drawn = resampled_means(space, 400, torch.Generator().manual_seed(0))
        spread = space.blocks_KGd.std(1, correction=0) / 2
        torch.testing.assert_close(drawn.mean(0), space.z_Kd, atol=0.2, rtol=0)
        torch.testing.assert_close(drawn.std(0), spread, atol=0.1, rtol=0.25)
    assert [block_count(n) for n in (2, 3, 4, 8, 100)] == [2, 2, 2, 4, 20]


def test_subspaces_are_fitted_on_the_training_tasks_alone() -> None:
    subject = tiny_subject()
    trained = len(subject.task.train)
    assert 0 < trained < len(subject.tasks)
    for space in head_spaces(subject):
        points_KD = space.points_KD[:trained]
        expected = principal_components(points_KD)
        torch.testing.assert_close(space.center_d, space.z_Kd[:trained].mean(0))
        torch.testing.assert_close(space.components.center_D, points_KD.mean(0))
        torch.testing.assert_close(space.components.variance_R, expected.variance_R)
        far = (space.z_Kd.mean(0) - space.center_d).norm()
        assert far > 1e-3 * space.center_d.norm()


def test_the_subject_s_means_are_those_of_the_objectives() -> None:
    subject = tiny_subject()
    means = subject.means
    expected = estimate_task_means(
        subject.lm, subject.task, subject.tasks, prompts=8, seed=subject.seed
    )
    assert torch.equal(means.z[0], expected.z[0])
    assert subject.means is means


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_projection_in_z_is_a_projection_of_the_contribution(family: str) -> None:
    subject = tiny_subject(family)
    for space in head_spaces(subject):
        basis = space.basis(3)
        z = torch.randn(9, len(space.center_d), dtype=torch.float64)
        h, mu = z @ space.weight_dD, space.center_d @ space.weight_dD
        inside = projection(space, basis)
        assert inside.matrix_dd is not None
        found = (z @ inside.matrix_dd + inside.shift) @ space.weight_dD
        torch.testing.assert_close(found, mu + (h - mu) @ basis @ basis.T)
        outside = removal(space, basis)
        assert outside.matrix_dd is not None
        rest = (z @ outside.matrix_dd + outside.shift) @ space.weight_dD
        torch.testing.assert_close(rest, mu + (h - mu) - (h - mu) @ basis @ basis.T)
        whole = projection(space, space.reach_DR)
        assert whole.matrix_dd is not None
        torch.testing.assert_close(z @ whole.matrix_dd + whole.shift, z, atol=1e-8, rtol=1e-8)


def test_reliability_is_one_for_a_head_that_tells_tasks_and_low_for_noise() -> None:
    subject = tiny_subject()
    space = head_spaces(subject)[0]
    assert reliability(space, space) == pytest.approx(1.0)
    noise = [
        type(space)(**{
            **{name: getattr(space, name) for name in space.__slots__},
            "z_Kd": torch.randn(14, 8, generator=torch.Generator().manual_seed(seed)).double(),
        })
        for seed in (0, 1)
    ]  # fmt: skip
    assert abs(reliability(*noise)) < 0.5


def test_the_heads_to_edit_are_chosen_by_what_they_tell_or_by_name() -> None:
    subject = tiny_subject()
    first, second = (head_spaces(subject, half) for half in (0, 1))
    telling = [a.head for a, b in zip(first, second, strict=True) if reliability(a, b) >= 0.5]
    assert list(chosen_heads(subject, "telling")) == (telling or list(subject.heads))
    assert chosen_heads(subject, "all") == subject.heads
    assert chosen_heads(subject, ["L1H3", "L0H1"]) == (subject.heads[0], subject.heads[2])
    with pytest.raises(HeadlocError, match="holds L0H1, L1H0, L1H3"):
        chosen_heads(subject, ["L0H0"])
    with pytest.raises(HeadlocError, match="telling, all"):
        chosen_heads(subject, "some")


def test_the_fewest_dimensions_that_keep_the_accuracy() -> None:
    sizes = {1: 10, 2: 95, 4: 100}
    arms = [subspaces_shown.Arm("full", None, "train", np.ones((1, 100), dtype=bool))]
    arms += [
        subspaces_shown.Arm("components", size, "train", np.arange(100)[None] < right)
        for size, right in sizes.items()
    ]
    assert subspaces_shown.kept_dimensions(arms, "train") == 2
    assert subspaces_shown.kept_dimensions(arms[:2], "train") is None


def test_answers_without_edits_are_the_model_s_own_also_of_several_tokens() -> None:
    """Greedy decoding by hand, one token at a time on the growing prompt."""
    subject = tiny_subject()
    examples = subject.examples(5, "test")
    (chunk,) = prompt_chunks(subject.lm, subject.task.template, examples)
    batch = chunk.batch
    wide = type(batch)(
        ids_BT=torch.nn.functional.pad(batch.ids_BT, (0, 2)),
        mask_BT=torch.nn.functional.pad(batch.mask_BT, (0, 2)),
        position_ids_BT=torch.nn.functional.pad(batch.position_ids_BT, (0, 2)),
        role_BT=torch.nn.functional.pad(batch.role_BT, (0, 2), value=-1),
        target_BJ=torch.nn.functional.pad(batch.target_BJ, (0, 2), value=-100),
        prompt_columns=batch.prompt_columns,
    )
    three = type(chunk)(chunk.rows, chunk.examples, chunk.encoded, wide, chunk.prefix)
    found = answers(subject.lm, three)
    for row, item in enumerate(chunk.encoded):
        ids = list(item.prompt.prompt_ids)
        for step in range(3):
            logits = subject.lm.model(torch.tensor([ids])).logits[0, -1]
            assert found[row, step] == logits.argmax()
            ids.append(int(found[row, step]))


def test_rows_may_be_repeated_and_edited_one_by_one() -> None:
    subject = tiny_subject()
    head = subject.heads[1]
    (chunk,) = prompt_chunks(subject.lm, subject.task.template, subject.examples(3, "test"))
    rows = torch.tensor([2, 2, 0])
    shift = torch.zeros(3, 8)
    shift[1] = 100.0
    plain = answers(subject.lm, chunk)
    with read_heads(subject.lm) as reading:
        answers(subject.lm, chunk, {head: Edit(None, shift)}, rows=rows)
    z = reading.z[1][:, 0, head.head]
    torch.testing.assert_close(z[0], z[1], atol=1e-4, rtol=1e-4)
    found = answers(subject.lm, chunk, {head: Edit(None, shift)}, rows=rows)
    assert found[0] == plain[2]
    assert found[2] == plain[0]


def test_labels_are_where_the_labels_are() -> None:
    subject = tiny_subject()
    (chunk,) = prompt_chunks(subject.lm, subject.task.template, subject.examples(6, "test"))
    columns = label_columns(chunk)
    assert subject.lm.tokenizer is not None
    for row, example in enumerate(chunk.examples):
        for place, pair in zip(columns[row], example.demonstrations, strict=True):
            token = subject.lm.tokenizer.decode([int(chunk.batch.ids_BT[row, place])])
            assert token.strip() == pair.output


def test_an_edit_of_an_unknown_head_is_refused() -> None:
    subject = tiny_subject()
    head = type(subject.heads[0])(7, 0)
    with pytest.raises(HeadlocError, match="no head L7H0"):
        edit_heads(subject.lm, {head: Edit(None, torch.zeros(8))}, slice(-1, None))


def test_a_feature_s_subspace_lies_in_the_head_s_and_groups_have_their_sizes() -> None:
    subject = tiny_subject(k_max=30)
    space = head_spaces(subject)[0]
    k = torch.arange(1, 31, dtype=torch.float64)
    order = torch.tensor([int(name.split("_")[1]) for name in subject.tasks]).double()
    assert sorted(order.tolist()) == k.tolist()
    for group, size in (("parity", 1), ("unit digit", 4), ("magnitude", 2)):
        basis = feature_basis(space, order, 6, group)
        assert basis.shape[1] == size
        assert principal_angles(basis, space.basis(6)).max() < 1e-5


def test_measures_of_an_answer() -> None:
    said = np.array([[47.0, 57.0, 48.0, np.nan]])
    arm = Arm("few_shot", "onto", "all r", said, np.array([47, 47, 46, 40]))
    assert arm.hits("exact").tolist() == [[True, False, False, False]]
    assert arm.hits("unit digit").tolist() == [[True, True, False, False]]
    assert arm.hits("parity").tolist() == [[True, True, True, False]]
    assert arm.hits("tens").tolist() == [[True, False, True, False]]
    assert arm.errors.tolist() == [0.0, 10.0, 2.0]


def test_success_of_steering_leaves_out_the_task_that_was_there() -> None:
    hits = np.eye(3, dtype=bool)[[0, 1, 2]]
    hits[0, 2] = True
    move = Steered("subspace", np.array([0, 1, 2]), hits)
    assert move.success(Resamples(3, 0)).value == pytest.approx(1 / 6)
    assert np.isnan(Steered("x", np.array([0, 0]), hits[:2]).matrix()[1]).all()


def test_rewriting_puts_the_coordinates_of_another_task_and_leaves_the_rest() -> None:
    subject = tiny_subject()
    space = head_spaces(subject)[1]
    basis, to = space.basis(3), torch.tensor([4, 0])
    z = torch.randn(2, len(space.center_d), dtype=torch.float64)
    edit = rewriting(space, space.projection(basis), to)
    assert edit.matrix_dd is not None
    found = (z @ edit.matrix_dd + edit.shift) @ space.weight_dD
    torch.testing.assert_close(found @ basis, space.points_KD[to] @ basis)
    before = z @ space.weight_dD
    inside = basis @ basis.T
    torch.testing.assert_close(found - found @ inside, before - before @ inside)


def test_heads_outside_the_circuit_can_be_put_to_their_mean() -> None:
    subject = tiny_subject()
    edits = mean_edits(subject)
    assert set(edits) == set(subject.lm.layout) - set(subject.heads)
    (chunk,) = prompt_chunks(subject.lm, subject.task.template, subject.examples(3, "test"))
    with edit_heads(subject.lm, edits, chunk.last), read_heads(subject.lm) as reading:
        subject.lm.logits(chunk.batch, chunk.prefix)
    average = subject.means.average(subject.task.train)
    for head in edits:
        z = reading.z[head.layer][:, 0, head.head]
        torch.testing.assert_close(z, average[head.layer][head.head].expand_as(z))


def test_steering_has_every_pair_and_all_arms() -> None:
    found = Steering(dimensions=4, prompts=14, random_sets=1, steered_prompts=1).run(
        tiny_subject(), quiet
    )
    tables = {table.name: table for table in found.tables}
    pairs = [row[:3] for row in tables["steering"].rows]
    assert len(pairs) == len({tuple(pair) for pair in pairs}) == 5 * 14 * 14
    arms = {(row[0], row[1], row[2], row[3]): row[4] for row in tables["arms"].rows}
    for context in ("few_shot", "patch", "vector"):
        assert (context, "untouched", "", "exact") in arms
        assert (context, "onto", "all r", "exact") in arms
        for mode in ("onto", "out of", "all but", "all but random"):
            assert (context, mode, "unit digit", "exact") in arms


def test_the_modes_of_a_group_divide_what_a_head_writes() -> None:
    subject = tiny_subject(k_max=30)
    spaces, numbers = head_spaces(subject), numbers_of(subject)
    bases = group_bases(spaces, numbers, 4, random_sets=2, seed=0)
    for index, space in enumerate(spaces):
        for kind in ("", " random"):
            for onto, out, rest in zip(
                *(bases[f"{mode}{kind}", "magnitude"] for mode in ("onto", "out of", "all but")),
                strict=True,
            ):
                own, beside, other = onto[index], out[index], rest[index]
                assert (own.shape[1], beside.shape[1]) == (2, 2)
                inside = own @ own.T + beside @ beside.T
                torch.testing.assert_close(inside, space.basis(4) @ space.basis(4).T)
                everything = own @ own.T + other @ other.T
                torch.testing.assert_close(everything, space.reach_DR @ space.reach_DR.T)


def test_projecting_on_everything_leaves_the_bundled_model_s_accuracy() -> None:
    """The full reach is no change at all; no dimension is the cross-task mean."""
    lm = bundled_lm()
    task = AddK()
    heads = tuple(list(lm.layout)[16:24])
    subject = Subject(circuit_of(lm, task, heads), lm, task, seed=1, mean_prompts=4)
    width = lm.layout.layers[2].width
    found = Subspaces(dimensions=2, sizes=[0, width], prompts=24, random_sets=1).run(subject, quiet)
    for split in ("train", "held_out"):
        full = found.scalars[f"{split}/accuracy/full"]
        assert full > 0.5
        assert found.scalars[f"{split}/accuracy/components/{width}"] == pytest.approx(
            full, abs=0.05
        )
    assert found.scalars["identity/gap"] < 1e-4


def test_tasks_without_numbers_have_no_periods_and_few_tasks_no_subspace() -> None:
    base = tiny_subject()
    with pytest.raises(NotApplicable, match="3 training tasks"):
        Subspaces().run(tiny_subject(k=[1, 2], held_out_k=[]), quiet)
    with pytest.raises(NotApplicable, match="too few"):
        Periodic().run(tiny_subject(k=[1, 2, 3, 4], held_out_k=[]), quiet)
    empty = Subject(circuit_of(base.lm, base.task, ()), base.lm, base.task, 0, 4)
    with pytest.raises(NotApplicable, match="no heads"):
        Subspaces().run(empty, quiet)


def test_options_are_checked() -> None:
    with pytest.raises(HeadlocError, match=r"analysis\.sizes"):
        Subspaces(sizes=[-1])
    with pytest.raises(HeadlocError, match="2 or more"):
        Periodic(periods=[1.5])
    with pytest.raises(HeadlocError, match="out of range"):
        Steering(layer=9, prompts=2, steered_prompts=1).run(tiny_subject(), quiet)
