"""Other tools read what we print."""

import json

from pybtex.database import parse_string

from llmbook.bibliography import entries, entry
from llmbook.bibliography.formats import FORMATS, csl_json, ris, text


def test_every_entry_prints_in_every_format():
    for form in FORMATS.values():
        assert form(list(entries().values())).strip()


def test_bibtex_parses_to_the_same_title():
    for found in entries().values():
        parsed = parse_string(FORMATS["bibtex"]([found]), "bibtex").entries
        assert list(parsed) == [found.key]


def test_csl_json_is_a_list_of_objects_with_split_names():
    found = json.loads(csl_json([entry("rajbhandari2020zero")]))[0]
    assert found["author"][0] == {"family": "Rajbhandari", "given": "Samyam"}
    assert found["issued"] == {"date-parts": [[2020]]}


def test_a_chinese_handle_stays_whole():
    found = json.loads(csl_json([entry("springxchen2023parameters")]))[0]
    assert found["author"] == [{"literal": "回旋托马斯x"}]


def test_ris_opens_with_the_type_and_closes():
    lines = ris([entry("rajbhandari2020zero")]).splitlines()
    assert lines[0].startswith("TY  - ")
    assert lines[-1] == "ER  -"


def test_text_has_title_and_address():
    line = text([entry("rajbhandari2020zero")])
    assert "ZeRO: Memory Optimizations" in line
    assert "https://" in line
