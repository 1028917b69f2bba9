"""No reference case is passed over in silence."""

import pytest

from tests.golden.golden import FOLDER, Case, case_files

pytestmark = pytest.mark.golden

COMPARED = {
    "llama_forward",
    "llama_cached",
    "t5_forward",
    "t5_cached",
    "collator_llama",
    "collator_t5",
}


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no reference tensors at {FOLDER}")
def test_every_case_is_compared() -> None:
    cases = case_files()
    assert cases
    assert {case.info["kind"] for case in cases} <= COMPARED
    tensors = {path.with_suffix(".json") for path in FOLDER.glob("cases/**/*.safetensors")}
    assert tensors == {case.path for case in cases}
    others = set(FOLDER.glob("cases/**/*.json")) - {case.path for case in cases}
    assert others <= {FOLDER / "cases/mask_cases.json"}


@pytest.mark.parametrize("case", case_files(), ids=str)
def test_files_hold_what_they_say(case: Case) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in case.tensors.items()}
    assert shapes == {name: one["shape"] for name, one in case.info["tensors"].items()}
