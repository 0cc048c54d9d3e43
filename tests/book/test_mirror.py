"""One name opens four doors: page, module, test, and the law that no line knows a room that is not there."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE, BOOK, TESTS = ROOT / "src" / "llmbook", ROOT / "book", ROOT / "tests"
CHAPTERS = ("foundations", "training", "inference", "zoo", "data")
COSTS = {  # a costs module bears the stem of its page
    "parameters": "foundations", "flops": "foundations", "memory": "training", "recomputation": "training",
    "collectives": "training", "zero": "training", "pipeline_parallel": "training", "kv_cache": "inference",
    "latency": "inference", "multimodal": "foundations",
}  # fmt: skip
PARTS = {  # a page too large for one module
    "foundations/emergence_runs": "foundations/emergence",
    "foundations/mixture_of_experts_runs": "foundations/mixture_of_experts",
    "foundations/instruction_runs": "foundations/instruction_following",
    "foundations/kneser_ney": "foundations/language_modelling",
    "foundations/multimodal_runs": "foundations/multimodal",
    "foundations/ratings": "foundations/evaluation",
    "foundations/reasoning_runs": "foundations/reasoning",
    "foundations/recall": "foundations/recurrence",
    "foundations/rwkv": "foundations/recurrence",
    "foundations/scaling_runs": "foundations/scaling_laws",
    "foundations/unigram": "foundations/tokenization",
    "foundations/votes": "foundations/reasoning",
}
MODULES = [
    file.relative_to(SOURCE).with_suffix("")
    for file in sorted(SOURCE.glob("**/*.py"))
    if not file.name.startswith("__")
]
PLANNED = {
    page["stem"] for page in tomllib.loads((BOOK / "plan.toml").read_text(encoding="utf8"))["page"]
}
PAGES = {
    file.relative_to(BOOK).with_suffix("").as_posix()
    for chapter in CHAPTERS
    for file in (BOOK / chapter).glob("**/*.md")
}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_a_test_of_its_name(module):
    test = TESTS / module.parent / f"test_{module.name}.py"
    assert test.exists(), f"src/llmbook/{module}.py has no {test.relative_to(ROOT)}"
    assert re.search(r"^\s*def test_", test.read_text(encoding="utf8"), re.M), (
        f"{test} tests nothing"
    )


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.parts[0] in (*CHAPTERS, "costs")], ids=str
)
def test_every_module_of_a_room_has_a_page_there_or_planned(module):
    chapter = COSTS[module.name] if module.parts[0] == "costs" else module.parts[0]
    page = "/".join((chapter, *module.parts[1:]))
    page = PARTS.get(page, page)
    assert page in PAGES | PLANNED, (
        f"src/llmbook/{module}.py has no page book/{page}.md, there or planned"
    )


def test_packages_hold_nothing_where_import_linter_is_blind():
    for room in (*CHAPTERS, "costs", "figures"):
        text = (SOURCE / room / "__init__.py").read_text(encoding="utf8")
        assert not re.search(r"^\s*(import|from) ", text, re.M), f"{room}/__init__.py imports"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_compiled_code_opens_no_file(module):
    """The build sees the files that Python opens; loaders read bytes in Python."""
    text = (SOURCE / f"{module}.py").read_text(encoding="utf8")
    assert not re.search(r"\bload_file\(|from_file\(|mmap=True|np\.load\(", text)
