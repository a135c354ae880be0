"""An adapter that somebody put on the Hub, fetched into the Hub's own cache.

It loads without torch.
"""

from __future__ import annotations

from pathlib import Path

from loraft.errors import AdapterError

FILES = ("adapter_*", "*.json", "*.jinja", "*.model", "*.spm", "merges.txt", "vocab.txt")
"""Config, weights, tokenizer and record; pickled weights come along to be named in the refusal, and are not opened."""
BELOW_THE_ROOT = "*/*"


def adapter_from_hub(name: str) -> Path | None:
    """The local folder of the adapter `name` on the Hub; None where there is none of that name, or no adapter in it.

    Raises:
        AdapterError: The Hub has it and it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    nothing = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError)
    noisy = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        hf_hub_download(name, "adapter_config.json")
    except nothing:
        return None
    else:
        try:
            return Path(snapshot_download(name, allow_patterns=[*FILES], ignore_patterns=[BELOW_THE_ROOT]))
        except nothing as error:
            raise AdapterError(f"the Hub's {name} cannot be fetched ({type(error).__name__})", where=name) from error
    finally:
        if noisy:
            enable_progress_bars()
