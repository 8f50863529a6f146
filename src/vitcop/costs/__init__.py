"""What a prompt costs, dense and pruned, in closed form."""
