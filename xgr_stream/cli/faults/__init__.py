"""A worker fleet under faults, and the proof that nothing was lost: what `xgr-stream soak` and tests/faults run."""
