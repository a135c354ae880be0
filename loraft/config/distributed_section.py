"""What a config says of several processes that train one run."""

from __future__ import annotations

from loraft.config.choices import Strategy
from loraft.config.sections import PositiveFloat, Section


class DistributedSection(Section):
    """How several processes train one run together: started by loraft train, torchrun or accelerate launch."""

    timeout_seconds: PositiveFloat = 600
    """How long one waits for another in a step, an evaluation or while a checkpoint is written, before all give up."""
    strategy: Strategy = "auto"
    """What each of several ranks holds: ddp the whole model, of which only what is trained is exchanged; fsdp2 a part
    of every tensor, frozen ones and weights in 4 bits too, and each layer is gathered while it computes. auto is ddp
    where that is foreseen to fit, else fsdp2."""
    reshard: bool = True
    """Of fsdp2: let go of a gathered layer after its forward, and gather it again for its backward. false keeps all
    layers whole in between: one gathering less, and as much memory as weights that are not in parts take."""
    cpu_offload: bool = False
    """Of fsdp2 on GPUs: keep each rank's part of the weights, and the optimizer's work on it, in main memory."""
    hybrid_shard: bool = False
    """Of fsdp2 on several machines: each machine holds the whole model in the parts of its ranks, so that layers are
    gathered within it and gradients alone go between machines."""

    @property
    def of_shards(self) -> list[str]:
        """The dotted keys of fsdp2 alone that say something of their own."""
        return [f"distributed.{key}" for key in self.said("reshard", "cpu_offload", "hybrid_shard")]
