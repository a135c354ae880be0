"""What a model is trained for: one module a task, and the one registry of them.

A new task is a module with a subclass of `Task` and a line below, those first whose formats ask the least of the
columns; its name stands in `config.choices.TaskName`.
"""

from collections.abc import Mapping

from loraft.config.choices import TaskName
from loraft.tasks.causal_lm import CausalLM
from loraft.tasks.seq2seq_lm import Seq2SeqLM
from loraft.tasks.seq_cls import SequenceClassification
from loraft.tasks.task import Task

__all__ = ["TASKS"]

TASKS: Mapping[TaskName, Task] = {task.name: task for task in (CausalLM(), Seq2SeqLM(), SequenceClassification())}
"""Every task, by the name that a config gives it."""
