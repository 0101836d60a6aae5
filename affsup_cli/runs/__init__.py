"""Run folders: results, checkpoints, exports."""
