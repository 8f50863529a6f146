"""Settings of the whole suite."""

import torch

# The models are tiny: more threads only wait for each other, and xdist runs one process per core.
torch.set_num_threads(1)
