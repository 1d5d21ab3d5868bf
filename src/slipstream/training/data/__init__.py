"""Training text: corpora, dialogues, and what the target makes of them."""
