"""Trains the small LLaVA that vitcop carries in ``vitcop/builtin``, from generated scenes alone."""
