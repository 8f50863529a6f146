"""How good a pruned model still is, and what each part of ViTCoP does for it."""
