"""How lmms-eval shows and scores a question of `vitcop_scenes`."""


def visuals(doc):
    """The pictures of a question."""
    return [doc["picture"].convert("RGB")]


def results(doc, answers):
    """1 for the right answer, 0 for any other."""
    return {"accuracy": float(answers[0].strip() == doc["answer"])}
