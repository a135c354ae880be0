"""Files for schedulers: what they say, and Slurm's run for real by stand-ins for its programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from loraft.cli.launch_files import Launcher, LaunchFile
from tests.cli.running import loraft, refused
from tests.training.building import rows, tiny_config, write_rows

TWO_MACHINES = "--num-processes 4 --num-machines {} --machine-rank {} --main-process-ip"


def text(launcher: Launcher, *, machines: int = 2, config: str = "runs of mine/My Run.yaml") -> str:
    return LaunchFile(Path(config), launcher, 4, machines).text()


@pytest.mark.parametrize("machines", [1, 2])
def test_slurm_gets_a_script_that_bash_reads(machines: int) -> None:
    written = text("slurm", machines=machines)
    subprocess.run(["bash", "-n"], input=written, text=True, check=True)
    assert f"#SBATCH --nodes={machines}\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=4\n" in written
    assert "#SBATCH --signal=TERM@600\n#SBATCH --requeue\n" in written
    assert (TWO_MACHINES.format("$SLURM_NNODES", "$SLURM_NODEID") in written) == (machines == 2)


def test_slurm_s_command_has_its_words_whatever_the_config_is_called(tmp_path: Path) -> None:
    stand_ins = {
        "srun": '#!/bin/bash\n"${@:2}"\n',
        "scontrol": "#!/bin/bash\necho first\n",
        "loraft": "#!/bin/bash\nprintf '%s\\n' \"$@\"\n",
    }
    for name, said in stand_ins.items():
        (tmp_path / name).write_text(said)
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}
    there = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    written = text("slurm", config="runs of mine/It's.yaml")
    done = subprocess.run(["bash"], input=written, text=True, capture_output=True, check=True, env=there)
    assert done.stdout.splitlines() == [
        "train", "runs of mine/It's.yaml", "--resume", "training.output_dir=runs/it-s", "--num-processes", "4",
        "--num-machines", "2", "--machine-rank", "1", "--main-process-ip", "first",
    ]  # fmt: skip


def test_sky_gets_a_task() -> None:
    task = yaml.safe_load(text("sky"))
    assert task["resources"] == {"accelerators": "H100:4", "use_spot": True}
    assert (task["name"], task["num_nodes"]) == ("my-run", 2)
    assert "loraft train 'runs of mine/My Run.yaml' --resume training.output_dir=/checkpoints/my-run" in task["run"]


def test_kubernetes_gets_an_indexed_job_whose_first_pod_the_others_find() -> None:
    service, job = yaml.safe_load_all(text("kubernetes"))
    assert (
        service["spec"] == {"clusterIP": "None", "selector": {"job-name": "my-run"}}
        or service["spec"]["clusterIP"] is None
    )
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command = " ".join(container["command"])
    assert command.startswith("loraft train /config/My Run.yaml --resume training.output_dir=/runs/my-run")
    assert command.endswith("--machine-rank $(JOB_COMPLETION_INDEX) --main-process-ip my-run-0.my-run")
    assert (job["spec"]["completions"], job["spec"]["completionMode"]) == (2, "Indexed")
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert pod["terminationGracePeriodSeconds"] == 600


def test_init_writes_it_beside_the_config_which_is_kept(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# mine\n")
    done = loraft("init", "run.yaml", "--launcher", "sky", "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"launch_file": "run.sky.yaml"}
    assert (tmp_path / "run.yaml").read_text() == "# mine\n"
    assert "is there already" in refused(loraft("init", "run.yaml", "--launcher", "sky", cwd=tmp_path))
    said = refused(loraft("init", "run.yaml", "--launcher", "slurm", "--method", "qlora", cwd=tmp_path))
    assert "run.yaml is there and is kept as it is: leave out what a new one would say" in said
    said = refused(loraft("init", "run.yaml", "--num-machines", "2", cwd=tmp_path))
    assert "--num-machines is about --launcher, and there is none" in said


@pytest.mark.slow
def test_init_writes_both_where_there_is_neither(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", rows())
    done = loraft("init", "a.yaml", "--data", "rows.jsonl", "--launcher", "slurm", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["launch_file"] == "a.sbatch"
    assert {each.name for each in tmp_path.glob("a.*")} == {"a.yaml", "a.sbatch"}


SRUN = """#!/bin/bash
# One node of Slurm: the signal that comes before the end of the time goes to what runs here.
[[ $1 == --* ]] && shift
export SLURM_NODEID=0
"$@" & child=$!
trap 'kill -TERM $child' TERM
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
[ "$1" = show ] && echo localhost || echo "$@" >> requeued
"""


@pytest.mark.slow
def test_a_job_that_is_out_of_time_saves_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    """On a CPU; what `sbatch` would run is run by hand, with SIGTERM where Slurm would send it."""
    config = tiny_config(tmp_path)
    values = config.model_dump(mode="json", exclude_defaults=True)
    values["training"] |= {"max_steps": 60, "output_dir": None}
    values["data"].pop("eval", None)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert loraft("init", "run.yaml", "--launcher", "slurm", "--num-processes", "1", cwd=tmp_path).returncode == 0
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, said in (
        ("srun", SRUN),
        ("scontrol", SCONTROL),
        ("loraft", f'#!/bin/sh\nexec {sys.executable} -m loraft "$@"\n'),
    ):
        (programs / name).write_text(said)
        (programs / name).chmod(0o755)
    root = str(Path(__file__).resolve().parents[2])
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NNODES": "1", "PYTHONPATH": root}
    there = os.environ | slurm | {"PATH": f"{programs}:{os.environ['PATH']}"}

    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(["bash", "run.sbatch"], cwd=tmp_path, env=there, stdout=log, stderr=log)
        metrics = tmp_path / "runs/run/metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") > 3):
            assert time.monotonic() < deadline
            assert job.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        (srun,) = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        os.kill(int(srun), signal.SIGTERM)
        assert job.wait(timeout=60) == 143, (tmp_path / "log").read_text()
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
        again = subprocess.run(["bash", "run.sbatch"], cwd=tmp_path, env=there, stdout=log, stderr=log, check=False)
    assert again.returncode == 0, (tmp_path / "log").read_text()
    steps = [json.loads(line).get("step") for line in metrics.read_text().splitlines()]
    assert max(step for step in steps if step) == 60
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
