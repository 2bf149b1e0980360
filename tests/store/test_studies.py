"""Studies: created once, the same for ever, stopped and resumed by people."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import pytest
from sqlalchemy.engine import Engine

from mathverify_sweep.config import SweepConfig
from mathverify_sweep.errors import DataDrift, StudyError
from mathverify_sweep.store import studies
from mathverify_sweep.store.studies import StudyRecord

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STUDY = StudyRecord("quickstart", '{"space": {"lora_r": 8}, "seed": 1}', "abc", None, None, NOW)


def test_a_study_is_created_once(engine: Engine) -> None:
    assert studies.create(engine, STUDY)
    assert not studies.create(engine, STUDY)
    assert studies.get(engine, "quickstart") == STUDY


def test_the_order_of_keys_is_no_other_configuration(engine: Engine) -> None:
    studies.create(engine, STUDY)
    turned = dataclasses.replace(STUDY, config='{"seed": 1, "space": {"lora_r": 8}}')
    assert not studies.create(engine, turned)


def test_another_configuration_is_refused_with_the_keys_that_differ(engine: Engine) -> None:
    studies.create(engine, STUDY)
    other = dataclasses.replace(STUDY, config='{"space": {"lora_r": 16}, "seed": 1, "new": null}')
    with pytest.raises(StudyError, match=r"differs in space\.lora_r\).*Give the file another name"):
        studies.create(engine, other)


def test_a_key_that_came_with_a_newer_version_is_as_if_its_default_had_been_stated(engine: Engine) -> None:
    config = SweepConfig.model_validate({"study": "s", "search_space": {"lora_r": {"choices": [4, 8]}}})
    old = json.loads(config.model_dump_json())
    del old["base_model"]["trust_remote_code"]
    studies.create(engine, dataclasses.replace(STUDY, config=json.dumps(old)))
    assert not studies.create(engine, dataclasses.replace(STUDY, config=config.model_dump_json()))
    old["base_model"]["trust_remote_code"] = True
    with pytest.raises(StudyError, match=r"differs in base_model\.trust_remote_code"):
        studies.create(engine, dataclasses.replace(STUDY, config=json.dumps(old)))


def test_other_data_is_refused(engine: Engine) -> None:
    studies.create(engine, STUDY)
    with pytest.raises(DataDrift, match="fingerprint abc, this machine reads xyz"):
        studies.create(engine, dataclasses.replace(STUDY, data_fingerprint="xyz"))


@pytest.mark.parametrize("name", ["", "x" * 513])
def test_a_name_that_optuna_would_not_take_is_refused(engine: Engine, name: str) -> None:
    with pytest.raises(StudyError, match="1 to 512 characters"):
        studies.create(engine, dataclasses.replace(STUDY, name=name))


@pytest.mark.parametrize("name", ["../x", "'; DROP TABLE mv_studies; --", "%", "日本", "a\nb"])
def test_a_hostile_name_is_only_a_name(engine: Engine, name: str) -> None:
    assert studies.create(engine, dataclasses.replace(STUDY, name=name))
    assert studies.get(engine, name).name == name
    assert studies.names(engine) == [name]


def test_an_unknown_study_names_the_nearest(engine: Engine) -> None:
    with pytest.raises(StudyError, match="It has none; `mvsweep create FILE` makes one"):
        studies.get(engine, "quickstrat")
    studies.create(engine, STUDY)
    with pytest.raises(StudyError, match="Did you mean 'quickstart'"):
        studies.get(engine, "quickstrat")
    with pytest.raises(StudyError, match="It has: quickstart"):
        studies.stop(engine, "zzz", "why")


def test_baselines_are_kept_once(engine: Engine) -> None:
    studies.create(engine, STUDY)
    assert studies.save_baselines(engine, "quickstart", '{"majority": 0.6}')
    assert not studies.save_baselines(engine, "quickstart", '{"majority": 0.7}')
    assert studies.get(engine, "quickstart").baselines == '{"majority": 0.6}'


def test_a_stop_has_a_reason_until_it_is_taken_back(engine: Engine) -> None:
    studies.create(engine, STUDY)
    studies.stop(engine, "quickstart", "enough")
    assert studies.get(engine, "quickstart").stopped == "enough"
    studies.resume(engine, "quickstart")
    assert studies.get(engine, "quickstart").stopped is None
