"""What is exported says what the run said, to whoever has transformers and PEFT and nothing of ours."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mathverify_sweep.data import dataset
from mathverify_sweep.data.rows import Row
from mathverify_sweep.errors import DataError, StudyError
from mathverify_sweep.store import provenance, runs
from mathverify_sweep.store.runs import RunRecord
from mathverify_sweep.verifiers import export as page
from mathverify_sweep.verifiers import verifier
from tests.verifiers.conftest import NOW, Shop

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT's own call
]


@pytest.fixture
def rows(shop: Shop) -> tuple[Row, ...]:
    return dataset.load(shop.place.data).validation


def exported(shop: Shop, run: RunRecord, folder: Path, merge: bool = False, dtype: Any = "float32") -> page.Exported:
    wanted = page.Wanted(merge, dtype, "cpu", NOW)
    return page.export(shop.database, verifier.model(run), shop.output, folder, wanted)


def as_the_card_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], float]:
    """The function that the model card defines, run where its reader would."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "mathverify" not in code
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    function: Callable[[str, str, str], float] = names["log_odds"]
    return function


def said(function: Callable[[str, str, str], float], rows: tuple[Row, ...]) -> list[float]:
    return [function(row.question, row.answer, row.solution) for row in rows]


def test_an_exported_adapter_says_the_same_in_plain_transformers_and_peft(
    shop: Shop, trio: list[RunRecord], rows: tuple[Row, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its kernels for CPUs that multiply bfloat16 refuse layers as narrow as this base's, and round the others.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    found = exported(shop, trio[0], tmp_path / "out")
    assert (found.merged, found.dtype) == (False, "float32")
    kept = runs.log_odds(shop.database, trio[0].run_id, "validation")
    assert said(as_the_card_says(tmp_path / "out", monkeypatch), rows) == pytest.approx(kept, abs=1e-4)
    assert np.std(kept) > 0.05, "an adapter that changes nothing would pass as well"


def test_a_merged_model_says_the_same_and_its_flips_are_counted(
    shop: Shop, trio: list[RunRecord], rows: tuple[Row, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = runs.log_odds(shop.database, trio[0].run_id, "validation")
    assert kept is not None
    threshold = trio[0].result.metrics.threshold  # type: ignore[union-attr]
    for dtype, close in (("float32", 1e-4), ("bfloat16", 0.2)):
        found = exported(shop, trio[0], tmp_path / dtype, merge=True, dtype=dtype)
        plain = np.array(said(as_the_card_says(tmp_path / dtype, monkeypatch), rows))
        assert plain == pytest.approx(kept, abs=close)
        assert found.rows == len(rows)
        # In batches and one by one, matmuls in bfloat16 may differ by a rounding, on some CPUs.
        at_the_threshold = np.sum(np.abs(plain - threshold) < close / 20) if dtype == "bfloat16" else 0
        assert abs(found.flipped - np.sum((plain >= threshold) != (kept >= threshold))) <= at_the_threshold
        card = (tmp_path / dtype / "README.md").read_text(encoding="utf-8")
        assert f"{found.flipped} got another verdict" in card
        told = json.loads((tmp_path / dtype / "verifier.json").read_text())
        assert (told["threshold"], told["dtype"]) == (threshold, dtype)


def test_flipped_verdicts_are_seen(shop: Shop, tmp_path: Path) -> None:
    """What a run said is turned over, as if merging had ruined every verdict."""
    run = shop.finished(17, params={"learning_rate": 1e-2}, seed=9)
    kept = runs.log_odds(shop.database, run.run_id, "validation")
    assert kept is not None
    threshold = run.result.metrics.threshold  # type: ignore[union-attr]
    runs.save_log_odds(shop.database, run.run_id, "validation", list(2 * threshold - kept + 1e-3))
    assert exported(shop, run, tmp_path / "out", merge=True).flipped >= len(kept) - 1


def test_an_adapter_is_merged_into_the_dequantised_weights_not_into_those_before(
    shop: Shop, trio: list[RunRecord], tmp_path: Path
) -> None:
    exported(shop, trio[0], tmp_path / "out", merge=True)
    name = "model.layers.1.mlp.up_proj"
    merged = load_file(tmp_path / "out" / "model.safetensors")[f"{name}.weight"]
    assert trio[0].result is not None
    assert trio[0].result.adapter is not None
    lora = load_file(shop.output / trio[0].result.adapter / "adapter_model.safetensors")
    a, b = (lora[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
    delta = (8 / math.sqrt(4)) * (b @ a)  # alpha is twice the rank, scaled by its root
    before = AutoModelForCausalLM.from_pretrained(str(shop.place.base), dtype=torch.float32).get_submodule(name).weight
    packed = AutoModelForCausalLM.from_pretrained(
        str(shop.place.base),
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    ).get_submodule(name)
    after = dequantize_4bit(packed.weight.data, packed.weight.quant_state)
    assert torch.allclose(merged, after + delta, atol=1e-6)
    assert (merged - before - delta).abs().max() > 1e-3, "quantising has moved the weights"


def test_a_card_tells_what_the_model_was_made_from(shop: Shop, trio: list[RunRecord], tmp_path: Path) -> None:
    exported(shop, trio[1], tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for text in (shop.place.fingerprint, trio[1].run_id, '"learning_rate": 0.01', "| validation |", "seed      1"):
        assert text in card
    (kept,) = provenance.exports_of(shop.database, trio[1].run_id)
    assert (kept.folder, kept.merged, kept.flipped) == (str(tmp_path / "out"), False, None)


def test_nothing_is_written_over_and_nothing_half(shop: Shop, trio: list[RunRecord], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="is there already"):
        exported(shop, trio[0], tmp_path / "there")
    elsewhere = page.Wanted(False, "float32", "cpu", NOW)
    with pytest.raises(StudyError, match=r"is not under .*Give the worker's --output"):
        page.export(shop.database, verifier.model(trio[0]), tmp_path, tmp_path / "new", elsewhere)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
