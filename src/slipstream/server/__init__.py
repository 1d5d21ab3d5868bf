"""A server that speaks the OpenAI API: one model, many requests, cycle by cycle in turns."""
