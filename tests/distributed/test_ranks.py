"""What ranks agree on: errors, numbers and shares."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loraft.distributed.rank_environment import RankEnvironment
from loraft.distributed.ranks import ALONE, Ranks, deal_rows
from loraft.errors import ConfigError, Interrupted, LoraftError, LostRankError, Problem, RunFolderError
from loraft.planning.run_plan import plan_run
from loraft.training.resume import require_same_model
from loraft.training.run_dir import RunFolder
from tests.distributed.forked import forked
from tests.training.building import tiny_config


def raised(act: Callable[[], object]) -> tuple[str, str, bool]:
    """The error of an act: its kind, what it says, and whether rank 0 tells it."""
    try:
        act()
    except LoraftError as error:
        return type(error).__name__, str(error), error.told_by_main
    except Exception as error:
        return (
            type(error).__name__,
            " ".join([str(error), *getattr(error, "__notes__", ())]),
            getattr(error, "told_by_main", False),
        )
    return "", "", False


def failing(ranks: Ranks, on: int, error: Exception) -> int:
    if ranks.rank == on:
        raise error
    return ranks.rank


def wrong() -> ConfigError:
    return ConfigError("is wrong", key="seed", remedy="write 1")


def of_everything(ranks: Ranks) -> dict[str, object]:
    """What one forked rank finds, of all that ranks agree on."""
    parameters = [torch.nn.Parameter(torch.full(size, 1.0 + ranks.rank)) for size in ((3,), (2, 2), (1,))]
    parameters[0].grad = torch.full((3,), 1.0 + ranks.rank)
    if ranks.rank == 1:
        parameters[2].grad = torch.full((1,), 5.0)
    ranks.sum_gradients(parameters)
    ranks.take_from_main(parameters[:2])
    return {
        "totals": ranks.totals(1, ranks.rank),
        "greatest": ranks.greatest(-ranks.rank, ranks.rank),
        "gathered": ranks.gathered(f"rank {ranks.rank}"),
        "main": ranks.on_main(lambda: ranks.rank),
        "first": ranks.first_on_each_machine(lambda: ranks.rank),
        "one failed": raised(lambda: ranks.together(lambda: failing(ranks, 1, wrong()))),
        "all failed": raised(lambda: ranks.together(lambda: failing(ranks, ranks.rank, wrong()))),
        "main failed": raised(lambda: ranks.on_main(lambda: failing(ranks, 0, wrong()))),
        "first failed": raised(lambda: ranks.first_on_each_machine(lambda: failing(ranks, 0, wrong()))),
        "bug": raised(lambda: ranks.together(lambda: failing(ranks, 1, ZeroDivisionError("a bug")))),
        "drawn": list(ranks.drawn_together(iter(["a", "b"]))),
        "gradients": [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters],
        "values": [parameter.tolist() for parameter in parameters],
    }


@pytest.mark.slow
def test_what_one_rank_meets_all_raise_and_rank_0_tells() -> None:
    for rank, found in enumerate(forked(2, of_everything)):
        assert not isinstance(found, str), found
        alone = "seed: is wrong\n  write 1"
        assert found["totals"] == [2, 1]
        assert found["greatest"] == [0, 1]
        assert found["gathered"] == ["rank 0", "rank 1"]
        assert (found["main"], found["first"], found["drawn"]) == (0, rank, ["a", "b"])
        assert found["one failed"] == ("ConfigError", "seed: is wrong (rank 1 of 2)\n  write 1", True)
        assert [found[f"{who} failed"] for who in ("all", "main", "first")] == [("ConfigError", alone, True)] * 3
        kind, said, told = found["bug"]  # type: ignore[misc]
        assert (kind, told) == ("ZeroDivisionError", True)
        assert ("on rank 1:" in said) == (rank == 0), "rank 1 has its own traceback"
        assert found["gradients"] == [[3.0] * 3, None, [5.0]], "what no rank has a gradient of is left without one"
        assert found["values"] == [[1.0] * 3, [[1.0] * 2] * 2, [1.0 + rank]]


def test_one_process_agrees_with_itself() -> None:
    found = of_everything(ALONE)
    assert (found["totals"], found["greatest"], found["main"]) == ([1, 0], [0, 0], 0)
    assert found["main failed"] == ("ConfigError", "seed: is wrong\n  write 1", False)


def test_rows_are_dealt_by_their_tokens(tmp_path: Path) -> None:
    example = plan_run(tiny_config(tmp_path)).data.train[0]
    draw = random.Random(0)
    rows = [replace(example, tokens=draw.randint(10, 400)) for _ in range(32)]
    for batches, size, world in ((4, 8, 2), (4, 8, 3), (8, 4, 4)):
        dealt = deal_rows(rows, batches, size, world)
        of_ranks = [sum(row.tokens for batch in dealt[rank::world] for row in batch) for rank in range(world)]
        assert max(of_ranks) < 1.1 * min(of_ranks), (batches, world)


def test_errors_go_from_process_to_process_as_they_are() -> None:
    problems = [Problem("one", where="a:1"), Problem("two", key="seed")]
    stopped, lost = Interrupted("stopped", signal_number=15), LostRankError("x", exit_code=137)
    for error in (ConfigError.several(problems), stopped, lost):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), vars(again), str(again)) == (type(error), vars(error), str(error))


def test_a_place_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert RankEnvironment.read() == RankEnvironment()
    for name, said in (("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, said)
    assert RankEnvironment.read() == RankEnvironment(3, 4, 1, 2)


def test_a_rank_that_does_not_see_the_run_s_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraft.training.run_dir.SECONDS_TO_BE_SEEN", 0)
    with pytest.raises(RunFolderError, match="is not seen here\n  name a folder on a disk that all machines share"):
        RunFolder(tmp_path / "run", writes=False).require_seen()


def with_another_base(ranks: Ranks) -> tuple[str, str, bool]:
    """What a rank raises whose base is not that of rank 0."""
    adapted: Any = SimpleNamespace(loaded=SimpleNamespace(fingerprint=f"of {ranks.rank}"), notes=())
    return raised(lambda: ranks.together(lambda: require_same_model(adapted, ranks)))


@pytest.mark.slow
def test_ranks_with_other_bases_are_refused() -> None:
    for found in forked(2, with_another_base):
        kind, said, told = found
        assert (kind, told) == ("ModelError", True)
        assert "of rank 1 are not those of rank 0" in said
