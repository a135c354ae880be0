"""How a transformer generates and is fine-tuned, in parts: what is said, and which commands show it.

A part computes nothing: what it says was measured is read from what its commands print with `--json`.
"""

from loraft.tour.part_1_tokens import TOKENS
from loraft.tour.part_2_stacks import STACKS
from loraft.tour.part_3_positions import POSITIONS
from loraft.tour.part_4_layer import INSIDE_A_LAYER
from loraft.tour.part_5_lora import LORA
from loraft.tour.part_6_layers import LAYERS_AND_HEADS
from loraft.tour.part_11_qlora import QLORA
from loraft.tour.screens import Part

PARTS: dict[int, Part] = {
    1: TOKENS,
    2: STACKS,
    3: POSITIONS,
    4: INSIDE_A_LAYER,
    5: LORA,
    6: LAYERS_AND_HEADS,
    11: QLORA,
}
"""The parts by their numbers."""
