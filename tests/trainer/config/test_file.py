"""Reading a configuration: overrides, and what is said about wrong keys, values and files."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from trainer.config.file import ConfigError, load


class Oven(BaseModel):
    """A section."""

    model_config = ConfigDict(extra="forbid")
    heat_c: int = 180
    shelves: tuple[int, ...] = (1,)


class Kitchen(BaseModel):
    """A configuration with one section."""

    model_config = ConfigDict(extra="forbid")
    cook: str
    oven: Oven | None = Oven()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "kitchen.yaml"
    file.write_text("cook: Ann\noven: {heat_c: 200}\n", encoding="utf-8")
    return file


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(Kitchen, path, overrides)
    return str(caught.value).removeprefix(f"{path}: ")


def test_overrides_apply_in_order_with_yaml_values(path: Path) -> None:
    kitchen = load(Kitchen, path, ["oven.heat_c=90", "oven.shelves=[2, 3]", "oven.heat_c=95", "cook=Bo=b"])
    assert kitchen == Kitchen(cook="Bo=b", oven=Oven(heat_c=95, shelves=(2, 3)))


def test_an_override_can_empty_a_section_and_fill_an_empty_one(path: Path) -> None:
    assert load(Kitchen, path, ["oven=null"]).oven is None
    assert load(Kitchen, path, ["oven=null", "oven.heat_c=70"]).oven == Oven(heat_c=70)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("oven.heat=90", 'unknown key "oven.heat"; did you mean "oven.heat_c"?'),
        ("heat_c=90", 'unknown key "heat_c"; did you mean "oven.heat_c"?'),
        ("oevn.heat_c=90", 'unknown key "oevn"; did you mean "oven"?'),
        ("oven.zzzz=1", 'unknown key "oven.zzzz"; known keys here: oven.heat_c, oven.shelves'),
    ],
)
def test_an_unknown_key_names_its_path_and_the_nearest(path: Path, override: str, expected: str) -> None:
    assert message(path, override) == expected


def test_each_wrong_value_is_one_line_with_its_path(path: Path) -> None:
    lines = message(path, "oven.heat_c=hot", "oven.shelves=[1, x]").splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("oven.heat_c: should be a valid integer")
    assert lines[0].endswith("(got 'hot')")
    assert "oven.shelves.1: " in lines[1]


def test_a_missing_key_is_named(path: Path) -> None:
    path.write_text("oven: {}", encoding="utf-8")
    assert message(path) == '"cook" is missing; add it'


@pytest.mark.parametrize("override", ["oven.heat_c", "=3", "oven.=3", ".heat_c=1"])
def test_an_override_without_key_or_value_says_how_to_write_it(path: Path, override: str) -> None:
    assert "write it as key=value" in message(path, override)


def test_a_mapping_without_spaces_says_how_to_write_it(path: Path) -> None:
    """YAML takes {heat_c:90} for a key "heat_c:90" without a value."""
    assert "write a space after each colon" in message(path, "oven={heat_c:90}")
    assert load(Kitchen, path, ["oven={heat_c: 90}"]).oven == Oven(heat_c=90)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no settings"),
        (b"- 1", "holds no settings"),
        (b"a: [", "is not YAML"),
        (b"a: \xff", "not UTF-8"),
    ],
)
def test_an_unusable_file_is_one_line(path: Path, content: bytes, expected: str) -> None:
    path.write_bytes(content)
    assert expected in message(path)
    assert "\n" not in message(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    assert message(tmp_path / "nowhere.yaml").startswith("cannot be read (No such file or directory)")
