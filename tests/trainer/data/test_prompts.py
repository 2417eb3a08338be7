"""Prompt files of each kind, what is said of bad ones, and the stream across ranks, epochs and resumption."""

from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from trainer.data.files import DataError
from trainer.data.prompts import PromptFileError, PromptStream, read_prompts
from trainer.records import Prompt

PROMPTS = [Prompt(index, f"prompt {index}") for index in range(7)]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "\ufeffa red circle\r\n\n  zwei blaue Würfel \n")
    assert read_prompts(path) == [Prompt(0, "a red circle"), Prompt(1, "zwei blaue Würfel")]


def test_jsonl_keeps_what_else_it_says(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"prompt": "a cat", "tag": 3}\n\n{"prompt": "a\\u2028dog"}\n')
    assert read_prompts(path) == [Prompt(0, "a cat", {"tag": 3}), Prompt(1, "a\u2028dog")]


def test_csv_keeps_the_other_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'tag,prompt\nx,"a cat, asleep"\ny,a dog\n')
    assert read_prompts(path) == [
        Prompt(0, "a cat, asleep", {"tag": "x"}),
        Prompt(1, "a dog", {"tag": "y"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "", "holds no prompt"),
        ("a.txt", " \n\n", "holds no prompt"),
        ("a.jsonl", "", "holds no prompt"),
        ("a.csv", "", "holds no prompt"),
        ("a.csv", "prompt\n", "holds no prompt"),
        ("a.txt", b"good\nb\xe4d\n", "line 2: is not UTF-8"),
        ("a.csv", "text\na\n", "line 1: has no column prompt"),
        ("a.yaml", "", "use .txt, .jsonl, .csv, .parquet"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(
    tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(str(path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_ROWS = {
    "a.jsonl": (
        '{"prompt": "a cat"}\nnope\n\n["a"]\n{"text": "a"}\n{"prompt": 3}\n{"prompt": "a dog"}\n{"prompt'
        '": "\\ud800"}\n{"prompt',
        {
            1: "line 2: text is not JSON (Expecting value)",
            2: 'line 4: text is not like {"prompt": "..."}',
            3: "line 5: prompt is missing or not text",
            4: "line 6: prompt is missing or not text",
            6: "line 8: prompt has half of a character",
            7: "line 9: text is not JSON (Unterminated string starting at)",
        },
    ),
    "a.csv": (
        f"tag,prompt\nx,a cat\nx, \nx\nx,{'a' * 200_000}\nx,a dog\n",
        {
            1: "line 3: prompt is missing or not text",
            2: "line 4: prompt is missing or not text",
            3: "line 5: text is not CSV (field larger than field limit (131072))",
        },
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_left_out_or_refused(tmp_path: Path, name: str) -> None:
    content, problems = BAD_ROWS[name]
    path = write(tmp_path, name, content)
    found = read_prompts(path)
    assert [prompt.text for prompt in found] == ["a cat", "a dog"]
    assert [prompt.index for prompt in found] == [0, {"a.jsonl": 5, "a.csv": 4}[name]]
    assert set(found.left_out) == set(problems)
    assert found.report.startswith(
        f"{len(problems)} of {len(problems) + 2} rows of {path} are left out: 2 whose"
    )
    with pytest.raises(DataError, match="leave such rows out") as caught:
        read_prompts(path, strict=True)
    assert str(caught.value).startswith(f"{path}, {problems[1]}; repair it")


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", '{"text": "a"}\n'), ("a.jsonl", '[\n"a cat"\n]\n'), ("a.csv", 'prompt\n""\n" "\n')],
)
def test_a_file_of_bad_rows_alone_is_refused(tmp_path: Path, name: str, content: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(PromptFileError, match=r"(\d) of \1 rows of .* are left out: .*; none can be used"):
        read_prompts(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match=r"nowhere\.txt: cannot be read \(No such file"):
        read_prompts(tmp_path / "nowhere.txt")


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_laid_end_to_end_are_one_rank(world_size: int) -> None:
    single = PromptStream(PROMPTS, seed=3)
    ranks = [PromptStream(PROMPTS, seed=3, rank=r, world_size=world_size) for r in range(world_size)]
    for count in (2, 5, 1):
        dealt = [prompt for rank in ranks for prompt in rank.take(count)]
        assert dealt == single.take(count * world_size)


def test_tables_hold_prompts_too(tmp_path: Path) -> None:
    table = Dataset.from_dict({"text": ["a red circle", " two cubes"], "category": ["shape", "count"]})
    table.to_parquet(tmp_path / "a.parquet")
    DatasetDict({"train": table, "test": table.select([1])}).save_to_disk(tmp_path / "saved")
    prompts = read_prompts(tmp_path / "a.parquet")
    assert [prompt.text for prompt in prompts] == ["a red circle", "two cubes"]
    assert [prompt.extra["category"] for prompt in prompts] == ["shape", "count"]
    assert [prompt.text for prompt in read_prompts(f"{tmp_path}/saved#test")] == ["two cubes"]
    by_column = read_prompts(f"{tmp_path}/a.parquet#train:category")
    assert [prompt.text for prompt in by_column] == ["shape", "count"]


def test_the_files_of_a_folder_are_categories(tmp_path: Path) -> None:
    (tmp_path / "shape_val.txt").write_text("a round clock\n", encoding="utf-8")
    (tmp_path / "color_val.txt").write_text("a red car\n\na blue bench\n", encoding="utf-8")
    prompts = read_prompts(tmp_path)
    assert [(prompt.index, prompt.text, prompt.category) for prompt in prompts] == [
        (0, "a red car", "color_val"),
        (1, "a blue bench", "color_val"),
        (2, "a round clock", "shape_val"),
    ]


def test_metadata_of_geneval_are_prompts(tmp_path: Path) -> None:
    path = tmp_path / "evaluation_metadata.jsonl"
    line = '{"tag": "counting", "include": [{"class": "clock", "count": 2}], "prompt": "two clocks"}'
    path.write_text(f'{line}\n{{"prompt": "a cat"}}\n', encoding="utf-8")
    assert [prompt.category for prompt in read_prompts(path)] == ["counting", "all"]


def test_a_category_that_is_null_or_left_out_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat", "category": null}\n', encoding="utf-8")
    (tmp_path / "b.csv").write_text("prompt,category\na cat\n", encoding="utf-8")
    for name in ("a.jsonl", "b.csv"):
        assert [prompt.category for prompt in read_prompts(tmp_path / name)] == ["all"]


def test_a_table_without_prompts_says_so(tmp_path: Path) -> None:
    Dataset.from_dict({"title": ["a"], "text": [None]}).to_parquet(tmp_path / "a.parquet")
    Dataset.from_dict({"text": ["a", None, "b"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(PromptFileError, match=r"1 of 1 rows of .*a\.parquet are left out: 1 whose prompt is"):
        read_prompts(tmp_path / "a.parquet")
    found = read_prompts(tmp_path / "b.parquet")
    assert ([prompt.text for prompt in found], list(found.left_out)) == (["a", "b"], [1])
    with pytest.raises(PromptFileError, match="has no column subject; write SOURCE#SPLIT:COLUMN"):
        read_prompts(f"{tmp_path}/a.parquet#:subject")


def test_a_stream_resumes_to_the_very_prompt_on_another_world_size() -> None:
    unbroken = PromptStream(PROMPTS, seed=4)
    unbroken.take(10)
    stopped = PromptStream(PROMPTS, seed=4, rank=1, world_size=2)
    stopped.take(5)
    resumed = [PromptStream(PROMPTS, seed=4, rank=r, world_size=3) for r in range(3)]
    for stream in resumed:
        stream.load_state_dict(stopped.state_dict())
    assert [prompt for stream in resumed for prompt in stream.take(2)] == unbroken.take(6)
