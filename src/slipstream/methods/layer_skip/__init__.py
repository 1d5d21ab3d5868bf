"""Layer-skip: the target drafts for itself with some of its sub-layers skipped."""
