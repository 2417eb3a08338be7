"""Settings of the data: what a run learns from and is evaluated on."""

from typing import Literal

from pydantic import Field

from trainer.config.file import Section


class PromptsConfig(Section):
    """Prompts: a .txt (one a line), .jsonl ({"prompt": ...}) or .csv (column prompt) file, or a table.

    A row's category (GenEval calls it tag) is evaluated by itself; in a folder of .txt files, T2I-CompBench's
    layout, each file is a category.
    A table is a .parquet file, a folder that a dataset's save_to_disk wrote, or hf://USER/NAME@REVISION;
    #SPLIT:COLUMN after it takes another split than train, or another column than prompt, caption or text.
    """

    train: str | None = None
    """Prompts to train on; pictures that are given, in data, need none."""
    held_out: str | None = None
    """Prompts to evaluate on; null evaluates nothing."""
    strict: bool = False
    """Whether a row without a prompt ends the run; otherwise it is left out."""


class DataConfig(Section):
    """Captioned pictures, or preference pairs, for methods that learn from those."""

    source: str
    """A folder of pictures, .tar shards, .parquet files, a save_to_disk folder, or hf://USER/NAME@REVISION.

    Of files, a pattern takes some: rows/*.parquet, or shards/{000..127}.tar, of which none may be missing.
    #SPLIT:COLUMN after it takes another split than train, or captions from another column than usual.
    """
    pictures: tuple[str, ...] = Field((), max_length=2)
    """Columns of pictures that have other names than usual: one, or the chosen and the rejected one."""
    crop: Literal["centre", "random"] = "centre"
    """What is kept of a picture that does not have the proportions at which it is learned."""
    buckets: bool = False
    """Whether pictures are learned at the nearest of SDXL's proportions; a micro-batch has one of them."""
    strict: bool = False
    """Whether a row without caption, or with a picture that cannot be read, ends the run."""
