"""Evaluation on top of mteb: its tasks and metrics, the published figures beside, two models
against each other."""
