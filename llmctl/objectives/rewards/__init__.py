"""Rewards: what an answer is worth, by rules on its text, by a model, or by a function of the user's own."""
