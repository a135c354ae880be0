"""What to say of a key that the schema does not have."""

from __future__ import annotations

from difflib import get_close_matches

from loraft.config.aliases import answer_to_key
from loraft.config.located import KeyPath, dotted
from loraft.config.schema import RunConfig
from loraft.config.schema_info import expected, keys_of, path_of, places_of
from loraft.config.yaml_scalars import Value

KEYS_IN_A_SOURCE = {"type": "format", "ds_type": "format", "field": "columns"}


def advice_for_key(path: KeyPath, value: Value) -> str:
    """The remedy for an unknown key: another tool's name, a near miss, another level, or what there is."""
    section, key = path[:-1], str(path[-1])
    return (
        _written_with_dots(section, key)
        or _of_another_tool(section, key, value)
        or _near_miss_here(section, key)
        or _at_another_level(key)
        or _near_miss_anywhere(key)
        or f"Known keys {'in ' + dotted(section) if section else 'at the top'}: {', '.join(keys_of(section))}."
    )


def _written_with_dots(section: KeyPath, key: str) -> str | None:
    parts = tuple(key.split("."))
    if len(parts) == 2 and not section and expected(parts) is not None:
        return f"Keys are nested: write {parts[0]}: and, indented beneath it, {parts[1]}."
    return None


def _of_another_tool(section: KeyPath, key: str, value: Value) -> str | None:
    if len(section) > 1 and key in KEYS_IN_A_SOURCE:
        return f"Write {KEYS_IN_A_SOURCE[key]}."
    return answer_to_key(key, value, _choices, _is_open)


def _choices(key: str) -> tuple[str, ...]:
    wanted = expected(path_of(key))
    return wanted.choices if wanted is not None else ()


def _is_open(key: str) -> bool:
    wanted = expected(path_of(key))
    return wanted is not None and wanted.takes(str)


def _near_miss_here(section: KeyPath, key: str) -> str | None:
    return _did_you_mean({dotted((*section, known)): known for known in keys_of(section)}, key)


def _at_another_level(key: str) -> str | None:
    places = places_of(key)
    return f"It belongs to another level: write {' or '.join(places)}." if places else None


def _near_miss_anywhere(key: str) -> str | None:
    sections: list[KeyPath] = [(), *((name,) for name in RunConfig.model_fields)]
    return _did_you_mean({dotted((*section, known)): known for section in sections for known in keys_of(section)}, key)


def _did_you_mean(known: dict[str, str], key: str) -> str | None:
    """Names that are spelt alike, or that hold all the words of `key`: `batch_size` in `per_device_…`."""
    spelt = key.replace("-", "_").lower()
    alike = get_close_matches(spelt, known.values(), n=3, cutoff=0.75)
    words = set(spelt.split("_"))
    near = alike or [name for name in known.values() if words <= set(name.split("_"))]
    found = [place for place, name in known.items() if name in near]
    return f"Did you mean {' or '.join(found)}?" if found else None
