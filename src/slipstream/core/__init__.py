"""The maths of drafting and verifying: tensors in, values out; no model and no clock."""
