"""`docs/config.md` is the schema of the config: each key with what it takes, its default and its description.

To write it anew: `python -m tests.config.test_config_page`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from loraft.config.config_file import inline, load_config
from loraft.config.schedules import ScheduleKwargs
from loraft.config.schema import RunConfig
from loraft.config.schema_info import METHODS, USED_BY, expected, path_of
from loraft.config.sections import DataSource, Section, StackLayers
from loraft.inspection.starter import example_row
from loraft.rows.fields import COLUMNS, OPTIONAL_COLUMNS
from loraft.tasks import TASKS

PAGE = Path(__file__).parents[2] / "docs/config.md"
INNER = {
    "lora.layers": ("`lora.layers`, each stack by itself", StackLayers),
    "training.lr_scheduler_kwargs": ("`training.lr_scheduler_kwargs`, by schedule", ScheduleKwargs),
    "data.train": ("`data.train` and `data.eval`, one source", DataSource),
}
"""The sections inside sections, by the key that holds them; `data.eval` holds what `data.train` does."""
INTRODUCTION = """\
# The config

Every key, as `schema.py` and `sections.py` in `loraft/config` have it; `loraft schema` prints the same as JSON for an
editor. Two keys have no default, so the shortest config is

```yaml
model:
  name_or_path: builtin:smollm2-135m-instruct
data:
  train: builtin:tickets
```

A key that does not exist is an error with the nearest name, and so is another tool's name for a key. Any key can be
changed for one run: `loraft train CONFIG training.max_steps=10 'lora.target_modules=[q_proj, v_proj]'`.
Paths count from the folder in which the command is typed, wherever the config lies.
Where `auto` stands for a dtype, the learning rate, the optimizer, gradient checkpointing or `tiled_mlp`, the
`config.yaml` in the run's folder has what it came to. Where a section or key is not used by the method or the task, a
note says so.
"""
FORMATS_OF_ROWS = """\
### Formats of rows

The columns may have other names in the file: `data.columns` says which. The two texts of a translation may also lie
under one key, as `{"translation": {"en": "…", "fr": "…"}}`; `data.source_lang` and `data.target_lang` tell them apart.
"""


def page() -> str:
    parts = [INTRODUCTION, table("", RunConfig, [key for key in RunConfig.model_fields if not _section(key)])]
    for name in RunConfig.model_fields:
        if section := _section(name):
            parts += _part(name, section)
    return "\n".join(parts)


def table(name: str, section: type[Section], keys: Collection[str] | None = None) -> str:
    """The keys of a section; `name` is where it stands, as a dotted key."""
    lines = ["| key | takes | default | what it is |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        if keys is None or key in keys:
            dotted = f"{name}.{key}" if name else key
            default = "required" if field.is_required() else f"`{inline(field.get_default(call_default_factory=True))}`"
            cells = (f"`{key}`", str(expected(path_of(dotted))), default, _description(dotted, field.description))
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _part(name: str, section: type[Section]) -> Iterator[str]:
    yield f"## {name}\n\n{_description(name, section.__doc__)}\n"
    yield table(name, section)
    for key, (title, inner) in INNER.items():
        if key.startswith(f"{name}."):
            yield f"### {title}\n\n{inner.__doc__}\n"
            yield table(key, inner)
    if name == "data":
        yield FORMATS_OF_ROWS
        yield "\n".join(["| format | for task | a row | may have besides |", "|---|---|---|---|", *_formats()]) + "\n"


def _formats() -> Iterator[str]:
    for row_format in COLUMNS:
        row = example_row(row_format)
        tasks = ", ".join(f"`{name}`" for name, task in TASKS.items() if row_format in task.formats)
        besides = ", ".join(f"`{column}`" for column in OPTIONAL_COLUMNS.get(row_format, ()) if column not in row)
        yield f"| `{row_format}` | {tasks} | `{row}` | {besides} |"


def _section(key: str) -> type[Section] | None:
    found = expected((key,))
    return found.section if found is not None else None


def _description(key: str, text: str | None) -> str:
    """On one line, with the tasks that use the key where not all do; the sections of a method say so themselves."""
    assert text
    tasks = " and ".join(f"`task: {task}`" for task in sorted(USED_BY.get(key, METHODS) - METHODS))
    return " ".join([*text.split(), *([f"*Used by {tasks}.*"] if tasks else [])])


def test_the_page_is_what_the_schema_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_key_of_the_schema_is_on_the_page() -> None:
    text = page()
    sections = [
        RunConfig,
        *filter(None, map(_section, RunConfig.model_fields)),
        StackLayers,
        ScheduleKwargs,
        DataSource,
    ]
    keys = [key for section in sections for key in section.model_fields if not (section is RunConfig and _section(key))]
    assert text.count("\n| `") == len(keys) + len(COLUMNS)
    assert all(f"\n| `{key}` | " in text for key in keys)


def test_every_limit_to_tasks_and_methods_is_on_the_page() -> None:
    of_methods = {key: users for key, users in USED_BY.items() if users <= METHODS}
    assert of_methods.keys() == {"lora", "quantization"}
    assert page().count("*Used by") == len(USED_BY) - len(of_methods) > 10
    for name, methods in of_methods.items():
        assert (section := _section(name)) is not None
        assert all(f"`method: {method}`" in (section.__doc__ or "") for method in methods)


def test_the_shortest_config_is_one(tmp_path: Path) -> None:
    path = tmp_path / "shortest.yaml"
    path.write_text(INTRODUCTION.partition("```yaml\n")[2].partition("```")[0])
    overrides = ["training.max_steps=10", "lora.target_modules=[q_proj, v_proj]"]
    config = load_config(path, overrides)
    assert (config.training.max_steps, config.lora.target_modules) == (10, ("q_proj", "v_proj"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
