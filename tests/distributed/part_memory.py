"""A process of its own that measures what ranks hold while they load or save: one that ran tests holds what they left.

`python -m tests.distributed.part_memory loading|saving FILE`: FILE is JSON with a list of configs to each kind. The
last is measured, after the others have imported and compiled what that needs. A line of JSON for each kind is printed.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from loraft.config.schema import RunConfig
from loraft.distributed.ranks import Ranks
from loraft.distributed.sharding import own_part
from loraft.io.held_memory import give_back_at_once, release_freed
from loraft.planning.run_plan import plan_run
from loraft.training.built_model import build_model
from loraft.training.checkpoint import RunState
from loraft.training.run_dir import RunFolder
from loraft.training.save_run import save, save_result
from loraft.training.train_step import Throughput, Trainer, take_step
from tests.distributed.forked import forked

Measure = Callable[[RunConfig, Ranks], tuple[int, int, int, int]]


def held_now() -> int:
    """The bytes of this process that lie in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


@contextmanager
def most_held() -> Iterator[list[int]]:
    """The most bytes that are held meanwhile beyond those of the beginning."""
    gc.collect()
    give_back_at_once(2**16)
    release_freed("cpu")
    before, most, ended = held_now(), [0], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            most[0] = max(most[0], held_now() - before)
            time.sleep(0.001)

    watching = threading.Thread(target=watch)
    watching.start()
    yield most
    ended.set()
    watching.join()


def while_loading(config: RunConfig, ranks: Ranks) -> tuple[int, int, int, int]:
    """The most that loading held, and sharding after it; what a rank has of the weights, and the largest tensor."""
    plan = plan_run(config, ranks=ranks)
    folder = RunFolder(Path(str(config.training.output_dir)), writes=False)
    with most_held() as held:
        adapted = build_model(plan, ranks)
        loading = held[0]
        run = Trainer(plan, folder, adapted, str, lambda _: None, [], ranks)
    parts = [own_part(weight) for weight in run.loss.parameters()]
    table = run.adapted.loaded.model.get_input_embeddings().weight
    own = sum(part.numel() * part.element_size() for part in parts)
    return loading, held[0], own, table.numel() * table.element_size()


def in_one_step(config: RunConfig, ranks: Ranks) -> Trainer:
    """A run whose optimizer has a state."""
    plan = plan_run(config, ranks=ranks)
    folder = RunFolder(Path(str(config.training.output_dir)), writes=ranks.main)
    folder.path.mkdir(exist_ok=True)
    run = Trainer(plan, folder, build_model(plan, ranks), str, lambda _: None, [], ranks)
    take_step(run, 1, run.prepare(next(plan.batches.windows(plan.data.train, 0, 0, (0, 0)))), Throughput(0))
    return run


def while_saving(config: RunConfig, ranks: Ranks) -> tuple[int, int, int, int]:
    """The most that saving a checkpoint held, and the result; what all weights take, and the largest."""
    run = in_one_step(config, ranks)
    sizes = [4 * weight.numel() for weight in run.adapted.trainable.values()]
    save(run, RunState(step=1))  # what saving imports is there
    with most_held() as saving:
        save(run, RunState(step=2))
    with most_held() as ending:
        save_result(run, RunState(step=2, last_loss=1.0))
    return saving[0], ending[0], sum(sizes), max(sizes)


MEASURES: dict[str, Measure] = {"loading": while_loading, "saving": while_saving}


def of_ranks(measure: str, runs: dict[str, list[RunConfig]], folder: Path) -> list[tuple[str, list[int]]]:
    """What each rank measured of each kind, in a process of its own."""
    (folder / "runs.json").write_text(
        json.dumps({kind: [config.model_dump(mode="json") for config in configs] for kind, configs in runs.items()})
    )
    command = [sys.executable, "-m", "tests.distributed.part_memory", measure, str(folder / "runs.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    measured = [item for line in ended.stdout.splitlines() for item in json.loads(line).items()]
    assert [kind for kind, _ in measured] == list(runs)
    return [(kind, found) for kind, of_kind in measured for found in of_kind]


def last_of(measure: Measure, configs: list[RunConfig], ranks: Ranks) -> tuple[int, int, int, int]:
    """What the last of these runs holds, after the others."""
    return [measure(config, ranks) for config in configs][-1]


def main() -> None:
    """Print, as JSON, what each of two ranks measured of each kind."""
    measure = MEASURES[sys.argv[1]]
    runs: dict[str, list[dict[str, object]]] = json.loads(Path(sys.argv[2]).read_text())
    for kind, values in runs.items():
        configs = [RunConfig.model_validate(each) for each in values]
        print(json.dumps({kind: forked(2, partial(last_of, measure, configs))}))


if __name__ == "__main__":
    main()
