from __future__ import annotations

from pathlib import Path

import pytest

from robustclip.errors import UsageError, coded
from robustclip.synthesis.items import load_prompts
from robustclip.synthesis.prompts import Prompt


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_text_file_has_a_caption_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "captions.txt", "\ufeffa cat:1.0\r\n\n  a dog | at 10:30\u2028  \n\ta cat:1.0\n")
    found = load_prompts(path)
    assert [one.id for one in found] == ["00001-a-cat-1-0", "00003-a-dog-at-10-30", "00004-a-cat-1-0"]
    assert [one.prompt for one in found] == [Prompt.literal(x) for x in ("a cat:1.0", "a dog | at 10:30", "a cat:1.0")]
    assert {one.seed for one in found} == {None}


def test_objects_may_have_ids_and_seeds(tmp_path: Path) -> None:
    lines = ['{"id": "a/1", "prompt": "a cat", "seed": 7}', "", '{"caption": "a dog", "id": 42}', '{"text": "a fox"}']
    found = load_prompts(write(tmp_path, "x.JSONL", "\n".join(lines)))
    assert [(one.id, one.seed, str(one.prompt)) for one in found] == [
        ("a-1", 7, "a cat"),
        ("42", None, "a dog"),
        ("00004-a-fox", None, "a fox"),
    ]


def test_tables_name_their_columns(tmp_path: Path) -> None:
    text = 'file,Caption,ID,seed\nx.png,"a cat, a dog\nand a ""fox""",one,\n\n,a bird,,3\n'
    found = load_prompts(write(tmp_path, "x.csv", text))
    assert [(one.id, one.seed, one.prompt.parts[0].content) for one in found] == [
        ("one", None, 'a cat, a dog\nand a "fox"'),
        ("00005-a-bird", 3, "a bird"),
    ]


def test_ids_that_become_one_name_are_told_apart(tmp_path: Path) -> None:
    ids = ["a/b", "a:b", "A-B", "🐢", "🦋", "x" * 300, "con"]
    text = "\n".join(f'{{"id": "{id_}", "prompt": "a cat"}}' for id_ in ids)
    found = [one.id for one in load_prompts(write(tmp_path, "x.jsonl", text))]
    assert found == [one.id for one in load_prompts(tmp_path / "x.jsonl")]
    assert found[0] == "a-b"
    assert found[1].startswith("a-b-")
    assert found[2].startswith("A-B-")
    assert found[6] == "picture-con"
    assert len({name.casefold() for name in found}) == len(ids)


@pytest.mark.parametrize(
    ("name", "text", "check"),
    [
        ("x.txt", "\n \n", coded("no_prompts")),
        ("x.txt", "a cat\na \0 dog", coded("not_utf8", line=2)),
        ("x.txt", "a cat\n" + "x" * 10_001, coded("too_long", line=2)),
        ("x.md", "a cat", coded("unknown_format", ending=".md")),
        ("x", "a cat", coded("unknown_format", ending="")),
        ("x.jsonl", '{"prompt": "a cat"}\n{"prompt": ', coded("not_json", line=2)),
        ("x.jsonl", "[" * 100_000, coded("not_json", line=1)),
        ("x.jsonl", '"a cat"', coded("not_an_object", line=1)),
        ("x.jsonl", '{"promt": "a cat"}', coded("no_prompt", line=1)),
        ("x.jsonl", '{"prompt": ["a cat"]}', coded("not_a_text", line=1)),
        ("x.jsonl", '{"prompt": " "}', coded("empty_prompt", line=1)),
        ("x.jsonl", '{"prompt": "a cat", "id": [1]}', coded("not_a_text", line=1)),
        ("x.jsonl", '{"prompt": "a cat", "id": true}', coded("not_a_text", line=1)),
        ("x.jsonl", '{"prompt": "a cat", "seed": -1}', coded("not_a_seed", line=1)),
        ("x.jsonl", '{"prompt": "a cat", "seed": 9223372036854775808}', coded("not_a_seed", line=1)),
        ("x.jsonl", '{"prompt": "a", "id": "1"}\n\n{"prompt": "b", "id": 1}', coded("listed_twice", line=3)),
        ("x.csv", "id,name\n1,a cat\n", coded("no_column", line=1)),
        ("x.csv", "", coded("no_column", line=1)),
        ("x.csv", "id,prompt\n1,a cat, a dog\n", coded("not_a_row", line=2)),
        ("x.csv", "id,prompt\n1,\n", coded("no_prompt", line=2)),
        ("x.csv", 'id,prompt\n1,"a cat\n', coded("not_a_row", line=2)),
    ],
)
def test_faulty_files_are_told_with_their_line(tmp_path: Path, name: str, text: str, check) -> None:
    with pytest.raises(UsageError, check=check):
        load_prompts(write(tmp_path, name, text))


def test_unreadable_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, check=coded("not_readable", path=tmp_path / "nowhere.txt")):
        load_prompts(tmp_path / "nowhere.txt")
    (tmp_path / "x.txt").write_bytes(b"a caf\xe9")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        load_prompts(tmp_path / "x.txt")


def test_thirty_thousand_captions_have_different_ids(tmp_path: Path) -> None:
    line = '{{"id": "COCO/{0:012}", "caption": "A bicycle replica with a clock as the front wheel, number {0}."}}'
    path = write(tmp_path, "x.jsonl", "\n".join(line.format(number) for number in range(30_000)))
    assert len({one.id for one in load_prompts(path)}) == 30_000
