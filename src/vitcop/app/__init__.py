"""A page in the browser on which pruning can be played with."""
