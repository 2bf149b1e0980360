"""Claims about sweep files: what good ones mean, and that broken ones name every problem with its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from mathverify_sweep import sweep_file
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import ConfigError
from mathverify_sweep.specs import TrainParams

BROKEN = {
    "a misspelt key and a misspelt axis": (
        """
        study: s
        bugdet: {trials: 3}
        search_space: {learnin_rate: 1e-4}
        """,
        [
            "bugdet: unknown key. Did you mean budget?",
            "search_space.learnin_rate: unknown axis. Did you mean learning_rate?",
        ],
    ),
    "a misspelt key of a section": (
        """
        study: s
        data: {sorce: rows.csv, validation_rows: many}
        """,
        ["data.sorce: unknown key. Did you mean source?", "data.validation_rows: "],
    ),
    "no study, and an unknown sampler and pruner": (
        """
        sampler: {type: genetic}
        pruner: {type: asha, reduction_factor: 1}
        """,
        ["study: is required", "sampler.type: ", "pruner.reduction_factor: "],
    ),
    "choices and a range that their axes do not take": (
        """
        study: s
        search_space:
          lora_r: {choices: [8, 0]}
          learning_rate: {low: 1e-3, high: 1e-5, log: true}
          lora_dropout: {low: 0.0, high: 1.5}
        """,
        [
            "search_space.lora_r.choices: ",
            "Remove 0.",
            "search_space.learning_rate: low must be below high",
            "search_space.lora_dropout.high: ",
        ],
    ),
    "ranges that are half, stepped in logarithms, or of words": (
        """
        study: s
        search_space:
          learning_rate: {low: 1e-5}
          weight_decay: {low: 1e-4, high: 0.1, log: true, step: 0.01}
          optim: {low: adamw_torch, high: lion_8bit}
        """,
        [
            "search_space.learning_rate: a range needs low and high",
            "search_space.weight_decay: a log range has no step",
            "search_space.optim: this axis is not a number",
        ],
    ),
    "conditions on nothing and in a circle": (
        """
        study: s
        search_space:
          lr_num_cycles: {low: 2, high: 4, when: {lr_scheduler_type: cosine_with_restarts}}
          lora_r: {choices: [8, 16], when: {lora_alpha: 16.0}}
          lora_alpha: {choices: [16.0, 32.0], when: {lora_r: 8}}
        """,
        [
            "search_space.lr_num_cycles.when: lr_scheduler_type is not in the search space",
            "search_space.lora_r.when: conditions form a circle",
            "search_space.lora_alpha.when: conditions form a circle",
        ],
    ),
    "a grid over a range without steps, and a first rung beyond the last row": (
        """
        study: s
        data: {train_rows: 100}
        sampler: {type: grid}
        pruner: {min_rows: 100}
        search_space: {learning_rate: {low: 1e-5, high: 1e-3, log: true}}
        """,
        [
            "sampler.type: a grid needs choices or stepped ranges",
            "pruner.min_rows: must be below data.train_rows (100)",
        ],
    ),
    "settings to enqueue that no axis takes": (
        """
        study: s
        search_space:
          learning_rate: {low: 1e-5, high: 1e-3, log: true}
          lora_r: {choices: [8, 16]}
        enqueue:
          - {learning_rate: 1.0}
          - {lora_r: 9, lora_alpha: 16}
          - {lora_r: big}
          - {}
        """,
        [
            "enqueue.0.learning_rate: the axis is log float 1e-05 to 0.001, got 1.0",
            "enqueue.1.lora_r: the axis is one of 8, 16, got 9",
            "enqueue.1.lora_alpha: not a tuned axis",
            "enqueue.2.lora_r: ",
            "enqueue.3: names no axis",
        ],
    ),
    "a deadline without zone, a negative budget, a stage of no rows": (
        """
        study: s
        budget: {deadline: "2026-01-01T00:00:00", trials: 4}
        promotion: {stages: [0, 20_000]}
        tracking: {wandb: sometimes}
        """,
        ["promotion.stages.0: ", "tracking.wandb: ", "budget.deadline: needs a time zone"],
    ),
    "a name that is no name, a prompt that is no file, and both alphas": (
        """
        study: my study!
        prompts: {mine: nowhere.txt}
        search_space: {lora_alpha: 16.0, lora_alpha_ratio: 2.0}
        """,
        ["study: letters, digits", "prompts.mine: must be a template", "search_space.lora_alpha: give either"],
    ),
}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def loaded(tmp_path: Path, text: str, *overrides: str) -> SweepConfig:
    return sweep_file.load(written(tmp_path, text), overrides)


def problems(tmp_path: Path, text: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, *overrides)
    return caught.value.problems


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_names_every_problem_with_its_key(tmp_path: Path, what: str) -> None:
    text, expected = BROKEN[what]
    found = problems(tmp_path, text)
    for beginning in expected:
        assert any(beginning in problem for problem in found), (beginning, found)
    keys = {problem.partition(":")[0] for problem in found}
    assert keys == {line.partition(":")[0] for line in expected if ":" in line}


def test_an_error_is_one_text_with_the_file_and_every_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep.yaml: 2 problem\(s\)\n  \w+: .*\n  \w+: "):
        loaded(tmp_path, "study: s\nbugdet: 1\nsmapler: 2\n")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "", "study: [unclosed"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert len(problems(tmp_path, text)) == 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml.*\n.*cannot be read"):
        sweep_file.load(tmp_path / "nowhere.yaml")


def test_yaml_is_read_as_version_1_2(tmp_path: Path) -> None:
    config = loaded(tmp_path, "study: no\nsearch_space:\n  learning_rate: 2e-5\n  weight_decay: {choices: [0, 1e-2]}\n")
    assert config.study == "no"
    assert config.space.fixed == {"learning_rate": 2e-5}
    assert config.space.params({}).learning_rate == 2e-5


def test_yes_is_a_word_and_no_boolean(tmp_path: Path) -> None:
    assert problems(tmp_path, "study: s\nsearch_space: {use_rslora: yes}\n")[0].startswith("search_space.use_rslora: ")


def test_a_file_states_only_what_differs(tmp_path: Path) -> None:
    config = loaded(tmp_path, "study: s\n")
    assert config == SweepConfig(study="s")
    assert (config.trials, config.data.train_rows, config.rungs) == (31, 10_000, (1250, 2500, 5000))


def test_a_good_file_means_what_it_says(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        """
        study: llama-1
        objective: validation_log_loss
        base_model: {name: org/model, quantization: int8}
        data: {source: rows.csv, columns: {is_correct: label}, train_rows: 800}
        search_space:
          learning_rate: {low: 1e-5, high: 1e-3, log: true}
          lora_r: {choices: [8, 16]}
          effective_batch_size: {low: 8, high: 64, step: 8}
          lr_scheduler_type: {choices: [linear, cosine_with_restarts]}
          lr_num_cycles: {low: 2, high: 4, when: {lr_scheduler_type: cosine_with_restarts}}
          weight_decay: 0.01
        enqueue:
          - {learning_rate: 2e-4, lora_r: 16}
        pruner: {type: median}
        budget: {trials: 8, gpu_hours: 2.5, deadline: 2026-01-01T00:00:00Z}
        promotion: {stages: [1000, 0.5, all]}
        """,
    )
    assert config.data.source == str(tmp_path / "rows.csv")
    assert [axis.name for axis in config.space.axes][-1] == "lr_num_cycles"
    assert config.space.fixed == {"weight_decay": 0.01}
    assert config.rungs == (100, 200, 300, 400, 500, 600, 700)
    assert config.promotion.stages == (1000, 0.5, "all")
    assert SweepConfig.model_validate_json(config.model_dump_json()).model_dump() == config.model_dump()


def test_a_trial_with_max_steps_sees_so_many_effective_batches_and_reports_no_later(tmp_path: Path) -> None:
    config = loaded(tmp_path, "study: s\ndata: {train_rows: 800}\npruner: {min_rows: 100}\n")
    specs = [
        config.trial_spec(0, TrainParams(max_steps=steps, effective_batch_size=16), "f") for steps in (0, 20, 50, 51)
    ]
    assert [spec.train_rows for spec in specs] == [800, 320, 800, 800]
    assert [spec.rungs for spec in specs] == [(100, 200, 400), (100, 200), (100, 200, 400), (100, 200, 400)]


def test_without_a_pruner_a_trial_reports_where_the_file_says_so(tmp_path: Path) -> None:
    text = "study: s\ndata: {train_rows: 800}\npruner: {type: none}\n"
    assert loaded(tmp_path, text).rungs == ()
    assert loaded(tmp_path, text, "pruner.min_rows=250").rungs == (250, 500, 750)


def test_the_task_solving_has_an_objective_and_templates_of_its_own(tmp_path: Path) -> None:
    text = "study: s\ntask: solving\ndata: {balance: true}\nsearch_space: {prompt_template: examiner}\n"
    assert [problem.split(":")[0] for problem in problems(tmp_path, text)] == [
        "objective",
        "data.balance",
        "search_space.prompt_template",
    ]
    good = "study: s\ntask: solving\nobjective: pass_at_1\nprompts: {mine: 'Q: {question} A:'}\n"
    spec = loaded(tmp_path, good).trial_spec(0, TrainParams(prompt_template="mine"), "f")
    assert (spec.data.task, spec.objective, spec.max_new_tokens) == ("solving", "pass_at_1", 256)


def test_an_override_says_more_than_the_file(tmp_path: Path) -> None:
    config = loaded(
        tmp_path, "study: s\nbudget: {trials: 3}\n", "budget.trials=4", "search_space.lora_r={choices: [4, 8]}"
    )
    assert (config.trials, [axis.name for axis in config.space.axes]) == (4, ["lora_r"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("budget.trials", "takes key.path=value"),
        ("study.name=x", "study is a value"),
        ("budget.trails=4", "budget.trails: unknown key. Did you mean trials?"),
        ("budget.trials=[", "not YAML"),
    ],
)
def test_a_wrong_override_is_explained(tmp_path: Path, override: str, said: str) -> None:
    assert any(said in problem for problem in problems(tmp_path, "study: s\n", override))


def test_prompts_are_texts_or_files_beside_the_sweep_file(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("{question} {solution} {answer}\nVerdict:\n", encoding="utf-8")
    config = loaded(tmp_path, "study: s\nprompts: {mine: mine.txt, other: 'Q {question} {answer} {solution}:'}\n")
    assert config.prompts == {
        "mine": "{question} {solution} {answer}\nVerdict:",
        "other": "Q {question} {answer} {solution}:",
    }


def test_the_trials_of_a_grid_are_its_points(tmp_path: Path) -> None:
    text = """
        study: s
        sampler: {type: grid}
        search_space: {lora_r: {choices: [4, 8]}, lora_dropout: {low: 0, high: 0.3, step: 0.1}}
        """
    assert loaded(tmp_path, text).trials == 8
    assert loaded(tmp_path, text, "budget.trials=3").trials == 3


def test_a_grid_has_an_end(tmp_path: Path) -> None:
    text = """
        study: s
        sampler: {type: grid}
        search_space: {lora_r: {low: 1, high: 500}, effective_batch_size: {low: 1, high: 500}}
        """
    assert "at most 10000 points, got 250000" in problems(tmp_path, text)[0]


def test_an_enqueued_value_of_an_axis_that_does_not_apply_is_refused(tmp_path: Path) -> None:
    text = """
        study: s
        search_space:
          lr_scheduler_type: {choices: [linear, cosine_with_restarts]}
          lr_num_cycles: {low: 2, high: 4, when: {lr_scheduler_type: cosine_with_restarts}}
        enqueue:
          - {lr_scheduler_type: linear, lr_num_cycles: 2}
          - {lr_num_cycles: 2}
        """
    assert problems(tmp_path, text) == (
        "enqueue.0.lr_num_cycles: only applies when lr_scheduler_type is cosine_with_restarts. Remove it, or set that.",
    )


def test_a_wandb_file_is_read_where_ours_is_expected(tmp_path: Path) -> None:
    text = "method: random\nparameters:\n  lr: {values: [1e-4, 2e-4]}\n"
    config = loaded(tmp_path, text, "budget.trials=2")
    assert (config.study, config.sampler.type, config.trials) == ("sweep", "random", 2)
    assert any("learning_rate" in line for line in sweep_file.read_as(tmp_path / "sweep.yaml"))
    assert sweep_file.read_as(written(tmp_path, "study: s\n")) == ()
