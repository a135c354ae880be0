"""How a transformer generates and is fine-tuned, in parts: what is said, and which commands show it.

A part computes nothing: what it says was measured is read from what its commands print with `--json`.
"""

from loraft.tour.part_1_tokens import TOKENS
from loraft.tour.part_2_stacks import STACKS
from loraft.tour.part_3_positions import POSITIONS
from loraft.tour.part_4_layer import INSIDE_A_LAYER
from loraft.tour.part_5_lora import LORA
from loraft.tour.part_6_layers import LAYERS_AND_HEADS
from loraft.tour.part_7_recurrent import LSTM_AND_GPT
from loraft.tour.part_8_writing import HOW_BOTH_WRITE
from loraft.tour.part_9_gradients import VANISHING_GRADIENTS
from loraft.tour.part_10_sentiment import SENTIMENT
from loraft.tour.part_11_qlora import QLORA
from loraft.tour.screens import Part

PARTS: dict[int, Part] = dict(
    enumerate(
        [
            TOKENS, STACKS, POSITIONS, INSIDE_A_LAYER, LORA, LAYERS_AND_HEADS, LSTM_AND_GPT, HOW_BOTH_WRITE,
            VANISHING_GRADIENTS, SENTIMENT, QLORA,
        ],
        start=1,
    )
)  # fmt: skip
"""The parts by their numbers."""
