"""Metrics of trained models."""

from affsup_cli.metrics.relationship import RelationshipRecall

__all__ = ["RelationshipRecall"]
