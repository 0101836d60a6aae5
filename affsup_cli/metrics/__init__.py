"""What a trained model is worth."""

from affsup_cli.metrics.relationship import RelationshipRecall

__all__ = ["RelationshipRecall"]
