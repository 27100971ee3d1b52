"""The training hot path: the same mathematics with less to compute.

`_install` decides, on the model at hand, which of these a run takes, and puts everything back afterwards:

- `_attention`: rows stand one after the other in one long row, without padding; each attends to itself alone.
- `_head`: logits exist for learned tokens only, a few hundred at a time, and their gradient is formed on the way.
- `_linear`: matrix products through the library that is faster on this processor.
- `_layers` (with `_lora`): decoder layers whose products are grouped and whose backward pass is written out.
"""
