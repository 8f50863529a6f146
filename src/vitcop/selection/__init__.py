"""What a pruning method is: a table of visual tokens, a choice among them, and a schedule."""
