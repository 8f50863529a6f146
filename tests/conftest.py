"""Settings of the whole suite."""

import hypothesis
import torch

# The models are tiny: more threads only wait for each other, and xdist runs one process per core.
torch.set_num_threads(1)

# A failure must come back when it is looked for.
hypothesis.settings.register_profile("fixed", derandomize=True, database=None)
hypothesis.settings.load_profile("fixed")
