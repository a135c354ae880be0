"""The datasets of TRL: a dataset and its splits, or a mixture of several."""

from __future__ import annotations

from loraft.config.yaml_nodes import Value
from loraft.peers.row_sources import UNREAD, Source, place_of_files, write_evaluation, written_sources
from loraft.peers.translation import Translation

NOT_READ = {
    "columns": "the columns of a source are named by columns: {ours: theirs}",
    "fraction": "write limit: how many rows are read",
    "data_dir": "write the address of each file: hf://datasets/OWNER/NAME/FILE",
}
"""Keys of a dataset that nothing is read from, and what there is instead."""


def translate_rows(translation: Translation) -> None:
    """`dataset_name` or `datasets`, the split that is evaluated, and which tokens are trained."""
    dataset, split = translation.value("dataset_name"), translation.value("dataset_train_split")
    mixture = translation.value("datasets")
    if isinstance(mixture, list) and mixture:
        sources = [_source(translation, number, each) for number, each in enumerate(mixture)]
        translation.write("datasets", {"data.train": written_sources(sources)})
    elif dataset is not None:
        source: Source = {"path": dataset, **({} if split in (None, "train") else {"split": split})}
        translation.write("dataset_name", {"data.train": written_sources([source])})
        translation.leave("dataset_train_split", "it is said of data.train" if split != "train" else "it is train")
    _write_evaluation(translation, dataset)
    if translation.value("packing") is True:
        translation.write("packing", {"data.packing": "fill"}, "rows never see one another")
    elif translation.value("packing") is False:
        translation.write("packing", {"data.packing": "auto"})
    unsaid = translation.value("assistant_only_loss") is None and translation.value("completion_only_loss") is None
    if unsaid and not translation.compares:
        why = "of conversations TRL trains every token by default: write all for that"
        translation.of_itself({"data.train_on": "completions"}, why)


def _source(translation: Translation, number: int, said: Value) -> Source:
    if not isinstance(said, dict) or "path" not in said:
        translation.refuse("datasets", "must name its rows by a path", "Write the path of each dataset.")
    for key, value in said.items():
        if value is not None and key not in ("path", "name", "split", "data_files"):
            translation.detail("datasets", f"datasets[{number}].{key}", value, NOT_READ.get(key, UNREAD))
    source: Source = {key: said[key] for key in ("path", "name", "split") if said.get(key) is not None}
    place = place_of_files(str(said["path"]), said.get("data_files"))
    if place is None:
        why = "each file is a source of its own: write its path"
        translation.detail("datasets", f"datasets[{number}].data_files", said["data_files"], why)
    return {**source, "path": place or said["path"]}


def _write_evaluation(translation: Translation, dataset: Value) -> None:
    """TRL evaluates the test split, and only where `eval_strategy` says when."""
    strategy, split = translation.value("eval_strategy", "evaluation_strategy"), translation.value("dataset_test_split")
    is_evaluated = strategy not in (None, "no", False) or translation.value("do_eval") is True
    if is_evaluated and dataset is not None and translation.value("test_split_size") is None:
        held_out: dict[str, Value] = {"data.eval": {"path": dataset, "split": split or "test"}}
        translation.write("dataset_test_split", held_out)
        translation.of_itself(held_out, "TRL evaluates the split test by default")
    else:
        translation.leave("dataset_test_split", "it is not evaluated")
    write_evaluation(translation, "test_split_size")
