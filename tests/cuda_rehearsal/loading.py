"""A process of its own that loads a model of a real width, quantized as it is read, and tells what was held.

`python -m tests.cuda_rehearsal.loading LIBRARY NAME LAYERS resident|fed`
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path

# Threads that load know of no mode; where weights are quantized while they are loaded there are none in any case.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_DEACTIVATE_ASYNC_LOAD="1")

if __name__ == "__main__":  # before torch is imported, which remembers that there is no CUDA
    ctypes.CDLL(sys.argv[1])

from loraft.config.sections import ModelSection, QuantizationSection
from loraft.kernels.layer_stream import Fed
from loraft.models.device import select_device
from loraft.models.load_model import load_model
from tests.cuda_rehearsal.device import rehearsal
from tests.cuda_rehearsal.geometry import GEOMETRIES, write_model
from tests.cuda_rehearsal.pretend import leave, pretend


def main() -> None:
    """Print the bytes that were held at most, and those that are held in the end, as JSON."""
    name, layers, how = sys.argv[2:]
    pretend()
    with tempfile.TemporaryDirectory() as place, rehearsal() as ledger:
        folder = Path(place) / "model"
        folder.mkdir()
        write_model(folder, GEOMETRIES[name] | {"num_hidden_layers": int(layers)})
        section = ModelSection(name_or_path=str(folder), dtype="bfloat16")
        streamed: Fed | None = "ends" if how == "fed" else None
        placement = select_device(section)
        loaded = load_model(section, placement, quantization=QuantizationSection(), streamed=streamed)
        devices = sorted({parameter.device.type for parameter in loaded.model.parameters()})
        host = loaded.stream.host_bytes if loaded.stream is not None else 0
        print(json.dumps({"held": ledger.live, "peak": ledger.peak, "devices": devices, "host": host}))


if __name__ == "__main__":
    main()
    leave()
