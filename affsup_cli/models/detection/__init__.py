"""Parts of the detectors: proposals, pooling, relation module."""
