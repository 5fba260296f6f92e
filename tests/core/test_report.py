import json

from hybrid_deploy.report import Column, Record, render

COLUMNS = (Column("name", "name"), Column("ms", "time ms", digits=2))
RECORDS: list[Record] = [
    {"name": "a", "ms": 1.23456},
    {"name": "long name", "ms": None, "unused": 1},
]


def test_table() -> None:
    lines = render(RECORDS, COLUMNS, "table").splitlines()
    assert [line.split() for line in (lines[0], lines[2], lines[3])] == [
        ["name", "time", "ms"],
        ["a", "1.23"],
        ["long", "name", "-"],
    ]


def test_markdown() -> None:
    assert render(RECORDS, COLUMNS, "md").splitlines() == [
        "| name | time ms |",
        "| --- | ---: |",
        "| a | 1.23 |",
        "| long name | - |",
    ]


def test_json_keeps_every_digit() -> None:
    assert json.loads(render(RECORDS, COLUMNS, "json")) == [
        {"name": "a", "ms": 1.23456},
        {"name": "long name", "ms": None},
    ]


def test_csv() -> None:
    assert render(RECORDS, COLUMNS, "csv") == "name,ms\na,1.23456\nlong name,\n"
