"""A process of its own that measures what ranks hold while they load: one that ran other tests holds what they left.

`python -m tests.distributed.part_loading FILE`, whose JSON has a list of configs to each kind: the last is measured,
after the others have imported and compiled what loading needs. A line of JSON for each kind is printed.
"""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from functools import partial
from pathlib import Path

from loraft.config.schema import RunConfig
from loraft.distributed.ranks import Ranks
from loraft.distributed.sharding import own_part
from loraft.io.held_memory import give_back_at_once, release_freed
from loraft.planning.run_plan import plan_run
from loraft.training.run_dir import RunFolder
from loraft.training.train_step import Trainer
from loraft.training.trainer import build_model
from tests.distributed.forked import forked


def held_now() -> int:
    """The bytes of this process that lie in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def loaded_bytes(config: RunConfig, ranks: Ranks) -> tuple[int, int, int, int]:
    """The most that loading held, and sharding after it; what a rank has of the weights, and the largest tensor."""
    plan = plan_run(config, ranks=ranks)
    gc.collect()
    give_back_at_once()
    release_freed("cpu")
    before, most, done = held_now(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], held_now() - before)
            time.sleep(0.002)

    watching = threading.Thread(target=watch)
    watching.start()
    folder = RunFolder(Path(str(config.training.output_dir)), writes=False)
    adapted = build_model(plan, ranks)
    loading = most[0]
    run = Trainer(plan, folder, adapted, str, lambda _: None, [], ranks)
    done.set()
    watching.join()
    parts = [own_part(weight) for weight in run.loss.parameters()]
    table = run.adapted.loaded.model.get_input_embeddings().weight
    return (
        loading,
        most[0],
        sum(part.numel() * part.element_size() for part in parts),
        table.numel() * table.element_size(),
    )


def measured(configs: list[RunConfig], ranks: Ranks) -> tuple[int, int, int, int]:
    """What the last of these runs holds, after the others."""
    return [loaded_bytes(config, ranks) for config in configs][-1]


def main() -> None:
    """Print, as JSON, what each of two ranks measured of each kind."""
    runs: dict[str, list[dict[str, object]]] = json.loads(Path(sys.argv[1]).read_text())
    for kind, values in runs.items():
        configs = [RunConfig.model_validate(each) for each in values]
        print(json.dumps({kind: forked(2, partial(measured, configs))}))


if __name__ == "__main__":
    main()
