"""Claims about sweep files that somebody else wrote: a config or one clear error, and quickly."""

from __future__ import annotations

import os
import re
import string
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mathverify_sweep import safe_yaml, sweep_file
from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import ConfigError
from mathverify_sweep.specs import TrainParams

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
QUICK_SECONDS = 20.0
"""Measured: under 2 s; the bound is for a machine that is busy."""


def problem_of(file: Path) -> str:
    """The one error that a file gives, without a traceback's worth of text."""
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        sweep_file.load(file)
    assert time.monotonic() - started < QUICK_SECONDS
    assert len(str(caught.value)) < 20_000
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "more than 10,000 values, its aliases written out"),
        ("study: &a [*a]", "nested more than 20 levels"),
        ("study: &a {b: *a}", "nested more than 20 levels"),
        ("base: &b {study: s}\n<<: [*b, *b]\nx: &c [*c, *c]", "nested|10,000"),
        ("study: " + "[" * 30_000, "nested more than 20 levels"),
        ("- " * 30_000, "nested more than 20 levels"),
        ("? " * 30_000, "nested more than 20 levels"),
        ("study: [" + "1," * 60_000 + "]", "more than 10,000 values"),
        ("\n".join(f"k{i}: 1" for i in range(20_000)), "more than 10,000 values"),
        ("study: " + "x" * 300_000, "more than 262,144 bytes"),
        ("study: a\nstudy: b", "duplicate key"),
        ("study: s\nbudget: {trials: 1, trials: 2}", "duplicate key"),
        ("study: !!python/object/apply:os.system ['touch /tmp/x']", "not YAML"),
        ("study: !!python/name:os.system", "not YAML"),
        ("study: 2026-13-01", "not YAML"),
        ("study: " + "9" * 5_000, "not YAML"),
        ("study: s\n1: 2", "keys must be words, got 1"),
        ("study: s\n? [a, b]\n: 1", "keys must be words|not YAML"),
        ("study: a\0b", "not YAML"),
        ("study: s\n--- \nstudy: t", "not YAML"),
        ("study: s\nbudget: " + repr("x" * 200_000), "budget: "),
        ("study: s\n" + "\n".join(f"k{i}: 1" for i in range(2_000)), r"… and 1950 more"),
        ("study: s\nsearch_space: {learning_rate: {low: 0.001, high: 1.0, step: 1.0e-300}}", "at most 100,000 steps"),
        ("study: s\nsearch_space: {lora_r: {low: 1, high: 8, step: .inf}}", "step: must be a number above 0"),
        ("study: s\ndata: {train_rows: 1000000000000}\npruner: {type: median, min_rows: 1}", "at most 1,000 rungs"),
        ("", "must be a mapping"),
        ("just words", "must be a mapping"),
    ],
)
def test_a_hostile_file_is_one_clear_error_and_quickly(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text, encoding="utf-8")
    assert re.search(said, problem_of(file)), problem_of(file)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "must be a file" in problem_of(tmp_path / "pipe.yaml")
    assert "must be a file" in problem_of(tmp_path)
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    assert "must be a file" in problem_of(tmp_path / "endless.yaml")
    assert "cannot be read" in problem_of(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"study: \xe9")
    assert "cannot be read" in problem_of(tmp_path / "latin.yaml")


def test_aliases_that_stand_for_little_are_welcome(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "study: s\nsearch_space:\n  lora_r: &few {choices: [4, 8]}\n  effective_batch_size: *few\n", encoding="utf-8"
    )
    assert sweep_file.load(file).search_space["effective_batch_size"] == {"choices": [4, 8]}


def test_a_prompt_file_is_small_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "huge.txt").write_text("{question}" + "x" * 300_000)
    (tmp_path / "x.yaml").write_text("study: s\nprompts: {a: huge.txt, b: /dev/zero, c: ''}\n")
    problem = problem_of(tmp_path / "x.yaml")
    assert "prompts.a: " in problem
    assert "prompts.b: " in problem


words = st.text(alphabet=string.ascii_letters + string.digits + "_-. {}é\u202e\u0000\ud800", max_size=12)
keys = st.one_of(
    st.sampled_from(sorted([*SweepConfig.model_fields, *TrainParams.model_fields])),
    st.sampled_from(
        [
            "low",
            "high",
            "log",
            "step",
            "choices",
            "when",
            "type",
            "seed",
            "min_rows",
            "trials",
            "stages",
            "top",
            "name",
            "source",
            "columns",
        ]
    ),
    words,
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 40),
    st.floats(),
    st.floats(1e-6, 1.0),
    words,
    st.dates(),
    st.datetimes(),
    st.sampled_from(["tpe", "grid", "random", "median", "asha", "cosine", "linear", "all", "plain", "nf4"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=5)),
    max_leaves=8,
)
axes = st.one_of(
    scalars,
    st.fixed_dictionaries({"choices": st.lists(scalars, max_size=4)}, optional={"when": values}),
    st.fixed_dictionaries(
        {"low": scalars, "high": scalars}, optional={"log": scalars, "step": scalars, "when": values, "x": values}
    ),
    values,
)
files = st.fixed_dictionaries(
    {"study": st.one_of(st.just("s"), words)},
    optional={
        "search_space": st.one_of(
            values, st.dictionaries(st.sampled_from(sorted(TrainParams.model_fields)), axes, max_size=4)
        ),
        "sampler": st.one_of(values, st.fixed_dictionaries({"type": st.sampled_from(["grid", "tpe"])})),
        "enqueue": st.one_of(values, st.lists(st.dictionaries(keys, scalars, max_size=3), max_size=3)),
        **{name: values for name in sorted(SweepConfig.model_fields) if name not in ("study", "search_space")},
    },
)
QUICK = settings(
    max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
LONG = settings(max_examples=4_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def read(raw: Any, folder: Path) -> None:
    """Either a config that survives being stored, or one ConfigError; never slow."""
    started = time.monotonic()
    try:
        config = sweep_file.validate(raw, "x.yaml", folder)
    except ConfigError:
        pass
    else:
        assert SweepConfig.model_validate_json(config.model_dump_json()) == config
        assert config.trials > 0
        assert len(config.rungs) <= sweep_file.MAX_RUNGS
    assert time.monotonic() - started < QUICK_SECONDS


def read_text(text: str, folder: Path) -> None:
    try:
        raw = safe_yaml.load(text, "x.yaml")
    except ConfigError:
        return
    if isinstance(raw, dict):
        read(raw, folder)


@given(files)
@example({"study": "s", "search_space": {"lora_alpha": {"low": None, "high": None}}})
@QUICK
def test_any_mapping_is_a_config_or_one_error(raw: Any) -> None:
    read(raw, Path("/nowhere"))


@given(st.text(alphabet="abk: -[]{}&*!?|>\"'#%@,\n\t0123456789.~<=\u2028é", max_size=60))
@example("study: s\nsearch_space: {learning_rate: {low: 1e-400, high: 1e400, log: true}}")
@QUICK
def test_any_text_is_a_config_or_one_error(text: str) -> None:
    read_text(text, Path("/nowhere"))


@pytest.mark.faults
@given(files)
@LONG
def test_very_many_mappings_are_configs_or_one_error(raw: Any) -> None:
    read(raw, Path("/nowhere"))


@pytest.mark.faults
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda b: b.decode("utf-8", "replace"))))
@LONG
def test_very_many_texts_are_configs_or_one_error(text: str) -> None:
    read_text(text, Path("/nowhere"))
