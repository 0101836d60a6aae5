"""The kinds of report: a grid of cells, costs, curves, embeddings, recall, relations, targets."""
