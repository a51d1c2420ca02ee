"""Text of a data set: code pages, byte-order marks, YAML's own ideas of words, Unicode forms."""

import unicodedata
from pathlib import Path

import pytest

from detr_hf.data.readers.text import is_no_value, name_key, read_lines, read_text, read_yaml
from detr_hf.errors import LayoutError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_with_and_without_a_mark(encoding: str, tmp_path: Path):
    (tmp_path / "classes.txt").write_bytes("chêtre\r\n\r\n 猫 \rкот\n".encode(encoding))
    assert read_lines(tmp_path / "classes.txt") == ["chêtre", "猫", "кот"]


@pytest.mark.parametrize(
    ("word", "encoding"), [("chêtre", "cp1252"), ("狗", "gbk"), ("кот", "cp1251"), ("é", "mac_roman")]
)
def test_another_code_page_is_named_and_not_guessed(word: str, encoding: str, tmp_path: Path):
    (tmp_path / "classes.txt").write_bytes(f"dog\n{word}\n".encode(encoding))
    with pytest.raises(LayoutError, match=r"classes\.txt is not UTF-8: line 2 holds the byte 0x"):
        read_text(tmp_path / "classes.txt")


@pytest.mark.parametrize(
    "word",
    ["no", "yes", "on", "off", "y", "n", "010", "1.0", "1e3", "0x1f", "1_000", "2024-01-02", "12:30:45", "null"],
)
def test_a_word_of_yaml_stays_the_word_that_stands_there(word: str, tmp_path: Path):
    (tmp_path / "data.yaml").write_text(f"names: [{word}, cat]\nnc: 2\n")
    assert read_yaml(tmp_path / "data.yaml") == {"names": [word, "cat"], "nc": "2"}


@pytest.mark.parametrize(
    "content", ["names: [a\n", "a: b: c\n", "names: {0: cat, 0: dog}\n", "a: 1\na: 2\n", "--- 1\n--- 2\n"]
)
def test_yaml_that_is_broken_or_says_a_key_twice_is_refused(content: str, tmp_path: Path):
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(LayoutError, match=r"data\.yaml is not YAML that can be read"):
        read_yaml(tmp_path / "data.yaml")


def test_what_stands_for_nothing():
    assert all(map(is_no_value, ["", "~", "null", [], {}, None]))
    assert not any(map(is_no_value, ["no", "0", ["a"]]))


def test_names_are_compared_in_one_unicode_form():
    assert name_key("cafe\u0301") == name_key("caf\u00e9") == unicodedata.normalize("NFC", "café")
    assert name_key("Cat") != name_key("cat")
