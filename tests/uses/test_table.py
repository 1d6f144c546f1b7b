"""Where each use of stop-gradient, and each rule of what it means, is proven; list and tests hold each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
#: A use -> what proves it: a module here, and the tests in it that assert the check of that use.
USES = {
    "transfer learning, fixed feature extractor": (
        "test_transfer_learning",
        "test_frozen_parameters_are_bit_identical_after_training test_no_backward_node_in_the_backbone",
    ),
    "fine-tuning by depth, gradual unfreezing": (
        "test_fine_tuning_by_depth",
        "test_parameters_move_only_in_the_phases_that_name_them test_one_checkpoint_goes_through_all_phases",
    ),
    "bias-only, norm-only, per-tensor and per-channel sparse updates": (
        "test_sparse_updates",
        "test_the_half_that_is_not_needed_is_absent"
        " test_per_channel_only_the_channels_that_are_kept_are_computed_and_move",
    ),
    "SimSiam": (
        "test_self_supervision",
        "test_without_a_predictor_the_marks_give_half_of_the_unmarked_gradient",
    ),
    "BYOL, MoCo, DINO targets": (
        "test_self_supervision",
        "test_no_backward_node_in_the_target_branch_of_byol test_no_backward_node_in_the_key_branch_of_moco"
        " test_marks_of_no_grad_survive_gradcuts_own_export_and_the_target_is_an_average",
    ),
    "GAN": ("test_gan", "test_the_other_players_parameters_are_bit_identical_after_a_step"),
    "actor-critic, TD learning": (
        "test_actor_critic",
        "test_the_gradient_is_that_of_a_constant_target test_the_gradient_of_td_is_that_of_a_constant_target",
    ),
    "multi-task, auxiliary outputs": (
        "test_multi_task",
        "test_the_trunks_gradient_is_that_of_the_remaining_loss test_an_output_that_only_looks_gives_the_trunk_nothing",
    ),
    "stable softmax": (
        "test_stable_softmax",
        "test_it_equals_the_plain_softmax_with_ties_too test_no_backward_node_for_the_max",
    ),
    "EM": ("test_expectation_maximization", "test_the_gradient_of_the_m_step_equals_the_closed_form"),
    "contrastive divergence": (
        "test_contrastive_divergence",
        "test_the_gradient_is_the_contrast_of_the_correlations",
    ),
    "adversarial training": (
        "test_adversarial_training",
        "test_the_example_equals_the_closed_form test_the_models_update_treats_the_example_as_data",
    ),
    "meta-learning": (
        "test_meta_learning",
        "test_first_order_equals_its_formula test_the_outer_gradient_is_torchs",
    ),
    "noise-robust and quantisation-aware training": ("test_straight_through", "test_the_gradient_equals_the_identity"),
}
#: A rule by its number -> the tests that state it, by their modules in tests/.
RULES = {
    1: {
        "uses.test_rules": [
            "test_the_forward_is_the_identity_bit_for_bit",
            "test_no_mark_is_left_in_what_is_emitted",
            "test_conv_mark_relu_fuses_to_one_kernel",
        ],
        "test_fusion": [
            "test_the_frozen_forward_is_fused_as_in_plain_inference",
        ],
    },
    2: {
        "test_vjp": [
            "test_nan_in_a_derivative_behind_a_mark_never_arrives",
        ],
        "uses.test_rules": [
            "test_what_lies_only_behind_a_mark_is_not_even_looked_at",
        ],
    },
    3: {
        "test_vjp": [
            "test_the_second_order_respects_a_mark",
            "test_a_mark_stays_as_a_function_that_is_the_identity",
        ],
        "uses.test_where_marks_stand": [
            "test_a_second_derivative_respects_it_too",
        ],
    },
    4: {
        "uses.test_rules": [
            "test_a_mark_belongs_to_the_model_and_a_cut_to_a_question",
        ],
    },
    5: {
        "uses.test_rules": [
            "test_nine_with_the_mark_and_twenty_seven_without",
        ],
        "test_vjp": [
            "test_stopped_and_not",
        ],
        "test_activity": [
            "test_a_stop_on_one_use_leaves_the_other",
        ],
    },
    6: {
        "uses.test_where_marks_stand": [
            "test_it_stops_there_what_detach_stops",
            "test_so_does_a_mark_in_the_file_binary_and_text",
        ],
        "test_activity": [
            "test_an_if_is_active_if_either_branch_makes_it_so",
            "test_a_loop_reaches_its_fixpoint_over_carried_values",
        ],
        "test_vjp": [
            "test_a_mark_on_one_use_of_a_weight_leaves_the_other",
        ],
    },
    7: {
        "uses.test_rules": [
            "test_marks_on_integers_booleans_and_strings_change_nothing",
        ],
    },
    8: {
        "uses.test_rules": [
            "test_vjp_gives_zeros_of_the_run_time_shape",
            "test_strict_makes_it_an_error",
            "test_compile_leaves_it_out_and_no_decay_or_momentum_moves_it",
        ],
    },
    9: {
        "uses.test_transfer_learning": [
            "test_no_running_statistic_of_the_backbone_moves",
        ],
    },
    10: {
        "uses.test_bad_input": [
            "test_two_marks_that_leave_no_trainable_are_both_named",
        ],
        "test_activity": [
            "test_a_thousand_random_graphs_agree_with_brute_force",
        ],
        "test_cli": [
            "test_explain",
        ],
    },
    11: {
        "rules.test_kinks": [
            "test_kinks_are_as_in_torch",
            "test_of_equal_values_top_k_takes_the_first",
        ],
    },
}


def functions(module: str) -> set[str]:
    tree = ast.parse((TESTS / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("use", USES)
def test_each_use_has_its_test(use: str) -> None:
    module, names = USES[use]
    assert set(names.split()) <= functions(f"uses.{module}")


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_has_its_tests(rule: int) -> None:
    for module, names in RULES[rule].items():
        assert set(names) <= functions(module), module


def test_each_module_here_stands_in_the_table() -> None:
    listed = {module for module, _ in USES.values()}
    listed |= {module.removeprefix("uses.") for modules in RULES.values() for module in modules}
    assert {path.stem for path in Path(__file__).parent.glob("test_*.py")} - {"test_table"} <= listed
    assert sorted(RULES) == list(range(1, 12))
