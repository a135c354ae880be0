"""Files by which a scheduler trains a config: text that a person edits, around one command."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraft.errors import ConfigError
from loraft.io.atomic import write_whole
from loraft.io.paths import check_output_file

Launcher = Literal["slurm", "sky", "kubernetes"]
ENDINGS: dict[Launcher, str] = {"slurm": ".sbatch", "sky": ".sky.yaml", "kubernetes": ".k8s.yaml"}
GRACE_SECONDS = 600
"""How long before its end a run is asked to save: a step and a checkpoint have to fit."""


@dataclass(frozen=True)
class LaunchFile:
    """A file for a scheduler: the config that it trains, on how many machines, with how many GPUs each."""

    config: Path
    launcher: Launcher
    num_processes: int
    num_machines: int

    @property
    def path(self) -> Path:
        """Where it lies: beside the config."""
        return self.config.with_suffix(ENDINGS[self.launcher])

    def check(self, *, overwrite: bool) -> None:
        """Refuse a place that it cannot be written to.

        Raises:
            ConfigError: It is there already, or there is no folder for it.
        """
        check_output_file(self.path, error=ConfigError)
        if self.path.exists() and not overwrite:
            remedy = "Name another config, or replace it with `overwrite`."
            raise ConfigError("is there already", where=self.path, remedy=remedy)

    def write(self) -> Path:
        """Write it, and give its place."""
        write_whole(self.path, self.text())
        return self.path

    @property
    def name(self) -> str:
        """What the job is called: letters, digits and hyphens, as Kubernetes wants it."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.config.stem.lower()).strip("-")
        return plain[:50] or "run"

    def command(self, folder: str, processes: str, *, machines: str, rank: str, host: str, config: str = "") -> str:
        """The command, which begins the run or goes on with it; one machine has no rank and needs no host."""
        given = shlex.quote(config or self.config.as_posix())
        words = [f"loraft train {given} --resume training.output_dir={folder}", f"--num-processes {processes}"]
        if self.num_machines > 1:
            words.append(f"--num-machines {machines} --machine-rank {rank} --main-process-ip {host}")
        return " ".join(words)

    def text(self) -> str:
        """The whole file."""
        return {"slurm": self._slurm, "sky": self._sky, "kubernetes": self._kubernetes}[self.launcher]()

    def _slurm(self) -> str:
        command = self.command(
            f"runs/{self.name}", str(self.num_processes), machines="$SLURM_NNODES", rank="$SLURM_NODEID", host="$HOST"
        )
        return f"""#!/bin/bash
# Trains {self.config.as_posix()}:  sbatch {self.path.as_posix()}
# What your cluster wants besides (partition, account, modules) is yours to add.
#SBATCH --job-name={self.name}
#SBATCH --nodes={self.num_machines}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={self.num_processes}
#SBATCH --time=24:00:00
# Ten minutes before the time is over the run is asked to save; then the job is queued again, and goes on.
#SBATCH --signal=TERM@{GRACE_SECONDS}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# source /path/to/.venv/bin/activate
# The folder of the run has to be on a disk that all machines see.
HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HOST
srun --kill-on-bad-exit=0 bash -c {shlex.quote(f"exec {command}")}
code=$?
# 143: saved because it was asked to. 0 is done, 2 refused and 3 failed: another turn would end alike.
if [ "$code" -eq 143 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""

    def _sky(self) -> str:
        command = self.command(
            f"/checkpoints/{self.name}",
            "$SKYPILOT_NUM_GPUS_PER_NODE",
            machines="$SKYPILOT_NUM_NODES",
            rank="$SKYPILOT_NODE_RANK",
            host='$(echo "$SKYPILOT_NODE_IPS" | head -n 1)',
        )
        return f"""# Trains {self.config.as_posix()}:  sky jobs launch {self.path.as_posix()}
# A managed job: when a machine is taken away it is started elsewhere, and goes on from its last checkpoint.
name: {self.name}
resources:
  accelerators: H100:{self.num_processes}
  use_spot: true
num_nodes: {self.num_machines}
workdir: .
file_mounts:
  # A bucket, called as nobody else's is. Checkpoints are folders that are renamed once they are whole, which this mode
  # can do and MOUNT cannot. Several machines need a disk that all of them see at once: a volume of your cloud.
  /checkpoints:
    name: {self.name}-checkpoints
    mode: MOUNT_CACHED
setup: |
  pip install '.[eval,gguf]'  # in a checkout of loraft; else where yours is
run: |
  {command}
"""

    def _kubernetes(self) -> str:
        return f"""# Trains {self.config.as_posix()}:
#   kubectl create configmap {self.name} --from-file={self.config.as_posix()}
#   kubectl apply -f {self.path.as_posix()}
apiVersion: v1
kind: Service
metadata:
  name: {self.name}
spec:
  clusterIP: None
  selector:
    job-name: {self.name}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {self.name}
spec:
  completions: {self.num_machines}
  parallelism: {self.num_machines}
  completionMode: Indexed
  backoffLimit: 10
  podFailurePolicy:
    rules:
      # A pod that the cluster takes away has saved, and goes on elsewhere without being counted.
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
      # What is refused would be refused again.
      - action: FailJob
        onExitCodes:
          operator: In
          values: [2]
  template:
    spec:
{self._pod()}"""

    def _pod(self) -> str:
        """What runs on each machine of a cluster."""
        command = self.command(
            f"/runs/{self.name}",
            str(self.num_processes),
            machines=str(self.num_machines),
            rank="$(JOB_COMPLETION_INDEX)",
            host=f"{self.name}-0.{self.name}",
            config=f"/config/{self.config.name}",
        )
        arguments = "\n".join(f"            - {json.dumps(word)}" for word in shlex.split(command))
        return f"""\
      subdomain: {self.name}
      restartPolicy: Never
      # Time for a step and a checkpoint, once the pod is asked to end.
      terminationGracePeriodSeconds: {GRACE_SECONDS}
      containers:
        - name: loraft
          image: YOUR/IMAGE-WITH-LORAFT
          command:
{arguments}
          resources:
            limits:
              nvidia.com/gpu: {self.num_processes}
          volumeMounts:
            - name: config
              mountPath: /config
            - name: runs
              mountPath: /runs
            - name: memory
              mountPath: /dev/shm
      volumes:
        - name: config
          configMap:
            name: {self.name}
        # A disk that all pods write into.
        - name: runs
          persistentVolumeClaim:
            claimName: runs
        - name: memory
          emptyDir:
            medium: Memory
"""
