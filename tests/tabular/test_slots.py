"""Slot files, a row a line of fields slot:value: against Python, a line at a time."""

import gzip

import numpy as np
import pytest

from support.tables import blocks, run_make_vocabulary, write_files
from tabular import files as table_files


def make_rows(rng, number):
    """Rows: slot -> list of values."""
    rows = []
    for _ in range(number):
        row = {"click": [str(rng.randint(2))], "dense": [f"{x:.3f}" for x in rng.rand(3)]}
        row["user"] = [str(2**62 + int(rng.randint(5)))]
        row["6003"] = [f"ü{i}" for i in rng.randint(0, 9, rng.randint(4))]
        rows.append({slot: values for slot, values in row.items() if slot == "click" or rng.rand() < 0.9})
    return rows


def text_of(rows, rng):
    """Lines of the rows, the slots in any order, as PaddleRec's have them."""
    lines = []
    for row in rows:
        slots = [list(row)[i] for i in rng.permutation(len(row))]
        lines.append(" ".join(f"{slot}:{value}" for slot in slots for value in row[slot]))
    return "".join(line + "\n" for line in lines)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_slots_are_columns_and_lists(name, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 2000)
    rows = make_rows(rng, 200)
    content = text_of(rows, rng).encode()
    write_files(tmp_path, {name: gzip.compress(content) if name.endswith(".gz") else content})
    numbers, users, lists = [], [], []
    for block in blocks(tmp_path / name):
        found = block.read(["click", "dense.0", "dense.2"], ["user"], [("6003", ""), ("dense", "")])
        assert found.good.all()
        numbers.append(np.stack(list(found.numbers.values()), axis=1))
        codes, texts = found.categories["user"]
        users += [texts[code] for code in codes]
        lengths, codes, texts = found.lists["6003"]
        parts = np.split(codes, np.cumsum(lengths)[:-1])
        lists += [[texts[code] for code in part] for part in parts]
    expected = [
        [float(r["click"][0]), *(float(r["dense"][i]) if "dense" in r else np.nan for i in (0, 2))] for r in rows
    ]
    np.testing.assert_array_equal(np.concatenate(numbers), expected)
    assert users == [row.get("user", [""])[0] for row in rows]
    assert lists == [row.get("6003", []) for row in rows]
    (file,) = table_files.open_files([str(tmp_path / name)])
    assert file.count() == 200


BAD = {
    "no colon": ("click:1 user\n", "line 2: it has 'user', not slot:value"),
    "no value": ("click:1 user:\n", "line 2: it has 'user:', not slot:value"),
    "two colons": ("click:1 user:a:b\n", "line 2: it has 'user:a:b', not slot:value"),
    "several values": (
        "click:1 user:1 user:2\n",
        "line 2: it has several values of user: name user in --lists, or user.0",
    ),
    "no number": ("click:1 user:1 x:y\n", "line 2: x is 'y', not a number"),
}


@pytest.mark.parametrize("line,words", BAD.values(), ids=BAD)
def test_a_line_that_is_not_of_slots_is_refused(line, words, tmp_path):
    write_files(tmp_path, {"train/a.txt": "click:0 user:1 x:1\n" + line})
    columns = ["--sparse", "user", "--dense", "x", "--labels", "click"]
    process = run_make_vocabulary(tmp_path, "--train", "train", *columns, "--out", "v.json")
    assert process.returncode == 2 and words in process.stderr, process.stderr


def test_a_bad_line_is_skipped_and_a_text_without_slots_is_no_table(tmp_path, caplog):
    write_files(tmp_path, {"train/a.txt": "c:0 u:1\nc:1 u\n\nc:1 u:2\n", "train/README.txt": "Read: this first.\n"})
    (file,) = table_files.open_files([str(path) for path in (tmp_path / "train").iterdir()])
    assert "README.txt: not a table" in caplog.text
    ((block,),) = [list(part.blocks()) for part in file.parts()]
    rows = block.read(["c"], ["u"])
    assert rows.numbers["c"].tolist() == [0, 1] and rows.first_bad().endswith("line 2: it has 'u', not slot:value")


def test_a_slot_that_no_row_of_a_file_has_is_empty_and_a_warning_says_so(tmp_path, caplog):
    write_files(tmp_path, {"a.txt": "c:0 u:1\n", "b.txt": "c:1\n"})
    files = table_files.open_files([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    for file in files:
        table_files.check_columns(file, ["c", "u"])
    assert [line for line in caplog.messages if "no row has the slot u: it is empty" in line] == [
        f"{tmp_path / 'b.txt'}: no row has the slot u: it is empty"
    ]
    (block,) = blocks(tmp_path / "b.txt")
    codes, texts = block.read(["c"], ["u"]).categories["u"]
    assert [texts[code] for code in codes] == [""]


def test_a_mark_of_utf8_is_no_part_of_a_slots_name(tmp_path):
    write_files(tmp_path, {"a.txt": b"\xef\xbb\xbfclick:1 item:3\nclick:0 item:4\n"})
    (block,) = blocks(tmp_path / "a.txt")
    assert block.columns == ["click", "item"] and block.read(["click"], []).numbers["click"].tolist() == [1, 0]


def test_a_numbered_slot_is_the_files_own_if_it_has_one(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "BLOCK_BYTES", 40)
    write_files(tmp_path, {"a.txt": "y:1 a.0:5 a:9\n" * 9 + "y:0 a:9\n" * 9})
    found = np.concatenate([block.read(["a.0"], []).numbers["a.0"] for block in blocks(tmp_path / "a.txt")])
    np.testing.assert_array_equal(found, [5] * 9 + [np.nan] * 9)
