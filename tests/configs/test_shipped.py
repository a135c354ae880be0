"""Every config that is shipped loads, and those that need no hub pass `loraft check`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loraft.config.files import load_config
from loraft.config.schema import unused_sections

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
BUILTIN = [path for path in CONFIGS if load_config(path, []).model.name_or_path.startswith("builtin:")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_loads_and_sets_nothing_that_is_not_used(path: Path) -> None:
    assert unused_sections(load_config(path, [])) == ()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_begins_with_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.slow
@pytest.mark.parametrize("path", BUILTIN, ids=lambda path: path.stem)
def test_check_finds_no_fault(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loraft", "check", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_papers_own_settings() -> None:
    """Dettmers et al. 2023, QLoRA, arXiv:2305.14314, table 9 and appendix B: 7B models."""
    config = load_config(ROOT / "configs/qlora-paper.yaml", [])
    assert (config.quantization.type, config.quantization.double_quant) == ("nf4", True)
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (64, 16, 0.1)
    assert (config.lora.target_modules, config.lora.layers) == ("all-linear", "all")
    training = config.training
    assert (training.learning_rate, training.lr_scheduler_type) == (2e-4, "constant")
    assert (training.max_grad_norm, training.adam_beta2) == (0.3, 0.999)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16
    assert training.optim == "paged_adamw_32bit"
