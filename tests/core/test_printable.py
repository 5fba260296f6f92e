import json

import pytest

from hybrid_deploy.printable import LINES, printable, printable_json
from hybrid_deploy.report import FORMATS, Column, Format, json_text, render

HOSTILE = "a\x1b]0;x\x07\x9b2J\u202eb\n|<script>`\udcff"


def test_what_a_terminal_obeys_is_escaped() -> None:
    assert printable(HOSTILE) == "a\\x1b]0;x\\x07\\x9b2J\\u202eb\\n|<script>`\\udcff"
    assert printable("a\tb\nc\r", LINES) == "a\tb\nc\\r"


def test_ordinary_text_of_any_script_stays() -> None:
    text = "日本 عربي עברית é 👩\u200d🚀 \u200e"  # with a joiner and a mark of direction
    assert printable(text) == text


def test_json_keeps_its_value() -> None:
    text = json.dumps({"a\u202e": HOSTILE + "\U000e0041"}, ensure_ascii=False, indent=1)
    written = printable_json(text)
    assert json.loads(written) == json.loads(text)
    assert written.replace("\n", " ").isprintable()


def test_json_of_a_name_that_is_no_utf8() -> None:
    assert json.loads(json_text([{"file": "\udcff.png"}])) == [{"file": "\\udcff.png"}]


@pytest.mark.parametrize("output_format", FORMATS)
def test_no_cell_leaves_its_place(output_format: Format) -> None:
    columns = [Column("name", "name")]
    text = render([{"name": HOSTILE}, {"name": "b"}], columns, output_format)
    assert text.replace("\n", " ").isprintable()
    plain = render([{"name": "a"}, {"name": "b"}], columns, output_format)
    assert len(text.splitlines()) == len(plain.splitlines())


def test_a_markdown_cell_holds_no_markup() -> None:
    row = render([{"name": "|`<b>`| [x](http://y) *z*"}], [Column("name", "name")], "md")
    cell = row.splitlines()[-1]
    assert cell == r"| \|\`\<b\>\`\| \[x\](http://y) \*z\* |"


def test_a_csv_cell_is_no_formula() -> None:
    text = render([{"name": "=cmd()", "ms": -1.5}], [Column("name", ""), Column("ms", "")], "csv")
    assert text.splitlines()[1] == "'=cmd(),-1.5"
