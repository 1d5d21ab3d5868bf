"""Draft-model: a smaller model drafts."""
