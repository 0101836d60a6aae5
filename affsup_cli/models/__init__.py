"""Networks: image classifiers, detectors and scene classifiers."""
